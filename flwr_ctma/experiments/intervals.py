"""Summaries over seeds: tail means, and intervals by the bootstrap."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flwr_ctma.errors import parameter_error

__all__ = ["Interval", "bootstrap_interval", "tail_mean"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A confidence interval, from `low` to `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        """Return it as text.

        Examples
        --------
        >>> print(Interval(0.25, 0.75))
        [0.25, 0.75]
        """
        return f"[{self.low:.3g}, {self.high:.3g}]"


def bootstrap_interval(
    samples: ArrayLike,
    statistic: Callable[[NDArray[Any]], float] = np.mean,
    confidence: float = 0.95,
) -> Interval | None:
    """Return the percentile bootstrap interval of a statistic over seeds.

    Whole rows are resampled with replacement, so that the columns of a row, which share
    a seed, stay together: the intervals of differences and of worst cases are paired.

    Parameters
    ----------
    samples : array_like, shape (num_seeds, ...)
        One row for each seed.
    statistic : callable (default: numpy.mean)
        Maps an array of the same shape as `samples` to a number.
    confidence : float (default: 0.95)
        Share of the resamples between the two ends.

    Returns
    -------
    Interval or None
        None for fewer than two seeds, and for samples that are not finite.

    Raises
    ------
    ValueError
        If the confidence is not between 0 and 1.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Examples
    --------
    >>> bootstrap_interval([0.5, 0.5, 0.5])
    Interval(low=0.5, high=0.5)
    >>> bootstrap_interval([0.5]) is None
    True
    """
    if not 0 < confidence < 1:
        raise parameter_error("confidence", "between 0 and 1", confidence)
    rows = np.asarray(samples, dtype=float)
    n = len(rows)
    if n < 2 or not np.isfinite(rows).all():
        return None
    drawn = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    values = [float(statistic(rows[chosen])) for chosen in drawn]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def tail_mean(values: Sequence[float], last: int) -> float:
    """Return the mean of the last values; NaN if any of them is not finite.

    Examples
    --------
    >>> tail_mean([0.1, 0.5, 0.75], last=2)
    0.625
    """
    tail = values[-last:]
    if not tail or not all(math.isfinite(value) for value in tail):
        return math.nan
    return statistics.fmean(tail)
