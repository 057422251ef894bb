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

__all__ = ["bounded_weights", "claimed_budget", "trimmed_mean", "weight_of"]

_Shape = int | None  # length of a list; None for a number
_Keyed = dict[str, tuple[_Shape, Any]]


def trimmed_mean(
    records: Sequence[MetricRecord], f: int
) -> tuple[MetricRecord, dict[int, Rejection]]:
    """Average metrics key by key, without the f smallest and the f largest values.

    A key counts if at least n − f of the n records carry it, finite and in the same
    shape: honest clients run the same code, so all of theirs do. A record without it,
    or with something else in its place, misses from that key alone. If fewer than
    2f + 1 values are left, the f that are missing were the liars' to give, and the
    median of what is left is still between honest values.

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
        values = np.array(
            [keyed[key][1] for keyed in readable if keyed.get(key, (-1,))[0] == shape],
            np.float64,
        )
        averages[key] = _middle(values, f).tolist()
    reporters = Counter(key for record in records for key in record)
    faults = {}
    for i, (record, keyed) in enumerate(zip(records, readable, strict=True)):
        unlike = [key for key in agreed if keyed.get(key, (-1,))[0] != agreed[key]]
        alone = [key for key in record if reporters[key] <= f]
        if unlike or alone:
            key = (unlike or alone)[0]
            what = "missing or unlike the others'" if unlike else "unknown"
            faults[i] = Rejection("metrics", f"{quote(key)} is {what}")
    return averages, faults


def _middle(values: NDArray[np.float64], f: int) -> NDArray[np.float64]:
    """Mean of the values without the f smallest and largest; of at most all but two."""
    cut = min(f, (len(values) - 1) // 2)
    kept = np.sort(values, axis=0)[cut : len(values) - cut]
    # Divided before they are summed: a sum of large numbers could overflow.
    mean: NDArray[np.float64] = (kept / len(kept)).sum(axis=0)
    return mean.clip(kept[0], kept[-1])


def _readable(record: MetricRecord) -> _Keyed:
    """Metrics that are finite numbers, or lists of them, by key with their shape."""
    return {
        key: (len(value) if isinstance(value, list) else None, value)
        for key, value in record.items()
        if all(map(_finite, value if isinstance(value, list) else [value]))
    }


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
