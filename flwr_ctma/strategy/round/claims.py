"""What clients say about themselves, as f liars among them cannot bend it."""

import math
from collections import Counter
from collections.abc import Sequence
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray

from flwr_ctma.aggregators import Budget
from flwr_ctma.compat import log
from flwr_ctma.messages.schema import Rejection, quote
from flwr_ctma.strategy.round.tolerance import effective_f

__all__ = ["bounded_weights", "claimed_budget", "trimmed_mean", "weight_of"]

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
        One of each client, n ≥ 2f + 1.
    f : int
        How many may lie.

    Returns
    -------
    tuple[MetricRecord, dict[int, Rejection]]
        The averages, as floats, and by index of the record what did not count of it.

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
            what = "missing or unlike the others'" if unlike else "unknown"
            faults[i] = Rejection("metrics", f"{quote(key)} is {what}")
    return averages, faults


def _has(keyed: _Keyed, key: str, shape: _Shape) -> bool:
    return key in keyed and keyed[key][0] == shape


def _middle(values: NDArray[np.float64], cut: int) -> NDArray[np.float64]:
    """Mean of the values without the smallest and the largest ones."""
    kept = np.sort(values, axis=0)[cut : len(values) - cut]
    # Divided before they are summed: a sum of large numbers could overflow.
    mean: NDArray[np.float64] = (kept / len(kept)).sum(axis=0)
    return mean.clip(kept[0], kept[-1])


def _readable(record: MetricRecord) -> _Keyed:
    """Metrics that are numbers or lists of them, by key; None if one is not finite."""
    found: _Keyed = {}
    for key, value in record.items():
        entries = value if isinstance(value, list) else [value]
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in entries):
            shape = len(value) if isinstance(value, list) else None
            found[key] = (shape, value if all(map(_finite, entries)) else None)
    return found


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def weight_of(metrics: MetricRecord, key: str) -> float:
    """Read the weight that a client claims; NaN unless it is finite and above zero."""
    value = metrics.get(key)
    if isinstance(value, int | float) and _finite(value) and value > 0:
        return float(value)
    return math.nan


def bounded_weights(
    claimed: Sequence[float], f: int
) -> tuple[NDArray[np.float64], float]:
    """Cut claimed weights to the (f + 1)-th largest, which some honest client has.

    Returns
    -------
    tuple[ndarray, float]
        The weights, and the share of their sum that the f heaviest hold: what f liars
        can have at most.

    Examples
    --------
    >>> bounded_weights([10.0, 1e30, 30.0, 20.0], f=1)
    (array([10., 30., 30., 20.]), 0.333...)
    """
    ranked = np.sort(np.asarray(claimed, np.float64))[::-1]
    weights = np.minimum(claimed, ranked[f])
    return weights, float(np.sort(weights)[::-1][:f].sum() / weights.sum())


def claimed_budget(
    metrics: Sequence[MetricRecord], f: int, weighted_by_key: str | None
) -> Budget:
    """Tell a rule what may be Byzantine: rows, or weight if clients claim it."""
    if weighted_by_key is None:
        return Budget(len(metrics), f)
    claimed = [weight_of(record, weighted_by_key) for record in metrics]
    weights, share = bounded_weights(claimed, f)
    if share < 0.5:
        return Budget(len(metrics), share, weights)
    log(
        WARNING,
        "\t> The %d largest `%s` are %.0f%% of all: no rule holds against that. "
        "All nodes count the same in this round.",
        *(f, weighted_by_key, 100 * share),
    )
    return Budget(len(metrics), f)
