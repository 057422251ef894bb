"""Weights that clients claim for themselves, bounded by those of honest clients."""

import math
from collections.abc import Sequence
from logging import WARNING

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray

from flwr_ctma.aggregators import Budget
from flwr_ctma.compat import log
from flwr_ctma.strategy.round.metrics import is_finite

__all__ = ["bounded_weights", "claimed_budget", "weight_of"]


def weight_of(metrics: MetricRecord, key: str) -> float:
    """Return the weight that a client claims; NaN unless finite and positive."""
    value = metrics.get(key)
    if isinstance(value, int | float) and is_finite(value) and value > 0:
        return float(value)
    return math.nan


def bounded_weights(
    claimed: Sequence[float], f: int
) -> tuple[NDArray[np.float64], float]:
    """Cut claimed weights to the (f + 1)-th largest, which an honest client bounds.

    Returns
    -------
    tuple[ndarray, float]
        The weights, and the share of the f heaviest in their sum: the most that f
        liars can hold.

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
    """Return the budget of Byzantine rows, or of Byzantine weight if claimed."""
    if weighted_by_key is None:
        return Budget(len(metrics), f)
    claimed = [weight_of(record, weighted_by_key) for record in metrics]
    weights, share = bounded_weights(claimed, f)
    if share < 0.5:
        return Budget(len(metrics), share, weights)
    log(
        WARNING,
        "\t> The %d largest `%s` are %.0f%% of all: no rule holds against that share. "
        "All nodes count the same in this round.",
        *(f, weighted_by_key, 100 * share),
    )
    return Budget(len(metrics), f)
