"""Metrics of clients, aggregated so that f liars cannot move them far."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray

from flwr_ctma.messages.schema import Rejection, quote
from flwr_ctma.strategy.round.tolerance import effective_f

__all__ = ["clip_to_honest_range", "is_finite", "trimmed_mean"]

_Shape = int | None  # length of a list; None for a number
_Keyed = dict[str, tuple[_Shape, Any]]  # shape and value; None: not finite


def trimmed_mean(
    records: Sequence[MetricRecord], f: int
) -> tuple[MetricRecord, dict[int, Rejection]]:
    """Average metrics key by key, without the f smallest and the f largest values.

    Honest clients run the same code, so all of them carry the same keys, in the same
    shape: a key counts if at least n − f of the n records do. A record without the key,
    or with another shape, proves that its sender lies. A value that is not finite
    proves nothing. The average of a key is then taken with `effective_f` of its finite
    values; the key is left out if they are too few.

    Parameters
    ----------
    records : sequence of MetricRecord
        The records of n ≥ 2f + 1 clients.
    f : int
        Number of liars among them.

    Returns
    -------
    tuple[MetricRecord, dict[int, Rejection]]
        The averages, as floats, and by index of the record the reason why a part of
        it does not count.

    Examples
    --------
    >>> said = [{"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}, {"loss": 1e30}]
    >>> trimmed_mean([MetricRecord(s) for s in said], f=1)
    ({'loss': 2.5}, {})
    >>> said[3] = {"loss": float("nan"), "gain": 9}
    >>> trimmed_mean([MetricRecord(s) for s in said], f=1)[0]
    {'loss': 2.0}
    >>> trimmed_mean([MetricRecord(s) for s in said[1:]], f=1)[0]
    {}
    """
    readable = [_readable(record) for record in records]
    carriers = Counter(
        (key, shape) for keyed in readable for key, (shape, _) in keyed.items()
    )
    agreed = {
        key: shape
        for (key, shape), count in carriers.items()
        if count >= len(records) - f
    }
    averages = MetricRecord()
    for key, shape in agreed.items():
        carried = [keyed[key][1] for keyed in readable if _has(keyed, key, shape)]
        finite = [value for value in carried if value is not None]
        absent = len(records) - len(carried)
        cut = effective_f(f, len(finite), absent, len(carried) - len(finite))
        if cut is not None:
            averages[key] = _middle(np.array(finite, np.float64), cut).tolist()
    reporters = Counter(key for record in records for key in record)
    faults = {}
    for i, (record, keyed) in enumerate(zip(records, readable, strict=True)):
        unlike = [
            key
            for key, shape in agreed.items()
            if not _has(keyed, key, shape) or keyed[key][1] is None
        ]
        alone = [key for key in record if reporters[key] <= f]
        if unlike or alone:
            key = (unlike or alone)[0]
            found = "unknown" if alone and not unlike else _describe(key, record, keyed)
            faults[i] = Rejection("metrics", f"{quote(key)} is {found}")
    return averages, faults


def _describe(key: str, record: MetricRecord, keyed: _Keyed) -> str:
    """Return the word for an agreed key that a record does not hold as the others."""
    if key not in record:
        return "missing"
    return "not finite" if keyed.get(key, (0, 0))[1] is None else "unlike the others'"


def _has(keyed: _Keyed, key: str, shape: _Shape) -> bool:
    return key in keyed and keyed[key][0] == shape


def clip_to_honest_range(
    records: Sequence[MetricRecord], averages: MetricRecord, f: int
) -> list[MetricRecord]:
    """Return the metrics of each client, clipped to a range that honest values span.

    The range of a key is from the (f + 1)-th smallest value to the (f + 1)-th largest.
    A record without the key gets the average.

    Parameters
    ----------
    records : sequence of MetricRecord
        The records of n ≥ 2f + 1 clients.
    averages : MetricRecord
        Their trimmed means.
    f : int
        Number of liars among them.

    Examples
    --------
    >>> records = [MetricRecord({"loss": loss}) for loss in (1.0, 2.0, 3.0, 1e30)]
    >>> averages, _ = trimmed_mean(records, f=1)
    >>> [r["loss"] for r in clip_to_honest_range(records, averages, f=1)]
    [2.0, 2.0, 3.0, 3.0]
    """
    readable = [_readable(record) for record in records]
    clipped = [MetricRecord() for _ in records]
    for key, average in averages.items():
        shape = len(average) if isinstance(average, list) else None
        values = [
            keyed[key][1] if keyed.get(key, (-1,))[0] == shape else None
            for keyed in readable
        ]
        given = np.sort([value for value in values if value is not None], axis=0)
        given = given.astype(np.float64)
        cut = min(f, (len(given) - 1) // 2) if len(given) else 0
        for record, value in zip(clipped, values, strict=True):
            if value is None or not len(given):
                record[key] = average
            else:
                low, high = given[cut], given[len(given) - 1 - cut]
                record[key] = np.clip(np.float64(value), low, high).tolist()
    return clipped


def _middle(values: NDArray[np.float64], cut: int) -> NDArray[np.float64]:
    """Return the mean of the values without the smallest and the largest ones."""
    kept = np.sort(values, axis=0)[cut : len(values) - cut]
    # Divided before they are summed: a sum of large numbers could overflow.
    mean: NDArray[np.float64] = (kept / len(kept)).sum(axis=0)
    return mean.clip(kept[0], kept[-1])


def _readable(record: MetricRecord) -> _Keyed:
    """Return the numbers and lists of numbers by key; None if one is not finite."""
    found: _Keyed = {}
    for key, value in record.items():
        entries = value if isinstance(value, list) else [value]
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in entries):
            shape = len(value) if isinstance(value, list) else None
            found[key] = (shape, value if all(map(is_finite, entries)) else None)
    return found


def is_finite(value: object) -> bool:
    """Return whether a metric is a number that a finite float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False
