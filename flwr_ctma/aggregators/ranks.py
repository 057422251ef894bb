"""Kernels that weigh the values of a coordinate by their rank."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ctma.engine.kernels import kernels, sorting
from flwr_ctma.engine.kernels.numpy import half_ranks
from flwr_ctma.engine.stack import Float64

__all__ = ["NearestToMedian", "Ranks", "WeightedMedian", "WeightedRanks"]


@dataclass(frozen=True)
class Ranks:
    """Mean of the values of some ranks: median, trimmed mean.

    Parameters
    ----------
    coefficients : tuple of n floats
        What each rank counts, from the smallest value to the largest.
    """

    coefficients: tuple[float, ...]

    def value(self, block: Any) -> Any:
        """Mean of the values, by rank."""
        if isinstance(block, np.ndarray):
            return kernels().ranked_mean(block, self.coefficients)
        return sorting.ranked_mean(block.clone(), self.coefficients)

    def weights(self, block: Any) -> Float64:
        """Weight of the rows: that of their rank."""
        by_rank = np.array(self.coefficients)[:, None]
        shape = (len(by_rank), block.shape[1])
        return _by_row(block, np.broadcast_to(by_rank, shape))


def _middle(weights: Float64) -> Float64:
    """Where the cumulative weight of sorted values reaches and passes one half."""
    chosen = np.zeros(weights.shape)
    for row in half_ranks(weights):
        np.put_along_axis(chosen, row[None], 1.0, axis=0)
    return chosen


@dataclass(frozen=True, eq=False)
class WeightedRanks:
    """Mean of values by rank, where rows have weights of their own.

    Parameters
    ----------
    row_weights : ndarray of shape (n,)
    chosen : callable
        Maps the (n, width) weights of sorted values to what they count.
    """

    row_weights: Float64
    chosen: Callable[[Float64], Float64]

    def value(self, block: Any) -> Any:
        """Mean of the values, by weighted rank."""
        order, kept = self._sorted(block)
        values = np.take_along_axis(_numpy(block), order, axis=0)
        mean = (kept * values).sum(axis=0) / kept.sum(axis=0)
        mean[~np.isfinite(values).all(axis=0)] = np.nan
        return mean if isinstance(block, np.ndarray) else block.new_tensor(mean)

    def weights(self, block: Any) -> Float64:
        """Weight of the rows."""
        return _by_row(block, self._sorted(block)[1])

    def _sorted(self, block: Any) -> tuple[Any, Float64]:
        order = np.argsort(_numpy(block), axis=0, kind="stable")
        return order, self.chosen(self.row_weights[order])


class WeightedMedian(WeightedRanks):
    """The value at which the cumulative weight passes one half.

    Parameters
    ----------
    row_weights : ndarray of shape (n,)
    """

    def __init__(self, row_weights: Float64) -> None:
        super().__init__(row_weights, _middle)

    def value(self, block: Any) -> Any:
        """Median of the values."""
        if isinstance(block, np.ndarray):
            return kernels().weighted_median(block, self.row_weights)
        return super().value(block)

    def near(self, block: Any, guess: Any) -> Any:
        """Median of the values, sooner where the guess is near."""
        return kernels().weighted_median(block, self.row_weights, guess)


@dataclass(frozen=True)
class NearestToMedian:
    """Mean of the k values nearest to the median.

    Parameters
    ----------
    k : int
    """

    k: int

    def value(self, block: Any) -> Any:
        """Mean of the window."""
        if isinstance(block, np.ndarray):
            return kernels().nearest_mean(block, self.k)
        return sorting.nearest_mean(block.clone(), self.k)

    def weights(self, block: Any) -> Float64:
        """One for each value in the window, divided by k."""
        values = np.sort(_numpy(block), axis=0)
        n = len(values)
        median = np.median(values, axis=0)
        moved = (median - values[: n - self.k]) > (values[self.k :] - median)
        start = moved.sum(axis=0)
        rank = np.arange(n)[:, None]
        return _by_row(block, ((rank >= start) & (rank < start + self.k)) * 1.0)


def _by_row(block: Any, by_rank: Float64) -> Float64:
    """Weights of ranks as weights of rows that sum to 1 in each column."""
    order = np.argsort(_numpy(block), axis=0, kind="stable")
    weights = np.empty(by_rank.shape)
    np.put_along_axis(weights, order, by_rank / by_rank.sum(axis=0), axis=0)
    return weights


def _numpy(block: Any) -> Any:
    return block if isinstance(block, np.ndarray) else block.cpu().numpy()
