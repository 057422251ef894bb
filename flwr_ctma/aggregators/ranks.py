"""Kernels that weigh the values of a coordinate by their rank."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ctma.engine.kernels.numpy import half_ranks
from flwr_ctma.engine.kernels.protocol import Primitives
from flwr_ctma.engine.stack import Array, Float64

__all__ = ["NearestToMedian", "Ranks", "WeightedMedian", "WeightedRanks"]


@dataclass(frozen=True)
class Ranks:
    """Mean of the values of some ranks: median, trimmed mean.

    Parameters
    ----------
    coefficients : tuple of n floats
        The weight of each rank, from the smallest value to the largest.
    """

    coefficients: tuple[float, ...]

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the mean of the values, weighted by rank."""
        return primitives.ranked_mean(block, self.coefficients, squares)

    def weights(self, block: Array) -> Float64:
        """Return the weight of each row, which is that of its rank."""
        by_rank = np.array(self.coefficients)[:, None]
        shape = (len(by_rank), block.shape[1])
        return _by_row(block, np.broadcast_to(by_rank, shape))


@dataclass(frozen=True, eq=False)
class WeightedRanks:
    """Mean of values by rank, where rows have weights of their own.

    Parameters
    ----------
    row_weights : ndarray of shape (n,)
    chosen : callable
        Maps the (n, width) weights of sorted values to the weights in the mean.
    """

    row_weights: Float64
    chosen: Callable[[Float64], Float64]

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the mean of the values, by weighted rank."""
        return primitives.weighted_ranks(block, self.row_weights, self.chosen, squares)

    def weights(self, block: Array) -> Float64:
        """Return the weight of each row."""
        order = np.argsort(block, axis=0, kind="stable")
        return _by_row(block, self.chosen(self.row_weights[order]))


@dataclass(frozen=True, eq=False)
class WeightedMedian:
    """The value at which the cumulative weight passes one half.

    Parameters
    ----------
    row_weights : ndarray of shape (n,)
    """

    row_weights: Float64

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the median of the values."""
        return primitives.weighted_median(block, self.row_weights, None, squares)

    def near(
        self, guess: Any, block: Any, primitives: Primitives, squares: Any = None
    ) -> Any:
        """Return the median of the values, found from a guess."""
        return primitives.weighted_median(block, self.row_weights, guess, squares)

    def weights(self, block: Array) -> Float64:
        """Return the weight of each row: equal shares of the values at one half."""
        order = np.argsort(block, axis=0, kind="stable")
        chosen = np.zeros(block.shape)
        for rank in half_ranks(self.row_weights[order]):
            np.put_along_axis(chosen, rank[None], 1.0, axis=0)
        return _by_row(block, chosen)


@dataclass(frozen=True)
class NearestToMedian:
    """Mean of the k values nearest to the median.

    Parameters
    ----------
    k : int
    """

    k: int

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the mean of the window of k values."""
        return primitives.nearest_mean(block, self.k, squares)

    def weights(self, block: Array) -> Float64:
        """Return the weight of each row: 1/k for each value in the window."""
        values = np.sort(block, axis=0)
        n = len(values)
        median = np.median(values, axis=0)
        moved = (median - values[: n - self.k]) > (values[self.k :] - median)
        start = moved.sum(axis=0)
        rank = np.arange(n)[:, None]
        return _by_row(block, ((rank >= start) & (rank < start + self.k)) * 1.0)


def _by_row(block: Array, by_rank: Float64) -> Float64:
    """Return weights of ranks as weights of rows that sum to 1 in each column."""
    order = np.argsort(block, axis=0, kind="stable")
    weights = np.empty(by_rank.shape)
    np.put_along_axis(weights, order, by_rank / by_rank.sum(axis=0), axis=0)
    return weights
