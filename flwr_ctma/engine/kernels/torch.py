"""The inner loops in torch, for tensors on any device."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from flwr_ctma.engine.buffers import Float64
from flwr_ctma.engine.kernels import numpy as plain
from flwr_ctma.engine.kernels.network import mean_by_rank, sort_rows

__all__ = [
    "nearest_mean",
    "ranked_mean",
    "squares_apart",
    "weighted_median",
    "weighted_ranks",
    "weighted_sum",
]

Tensor = torch.Tensor


def squares_apart(block: Tensor, middle: Tensor) -> Tensor:
    """Return the squared distance of each row to a vector, in float64."""
    return (block - middle).square_().sum(dim=1).double()


def weighted_sum(
    block: Tensor, coefficients: Float64, squares: Tensor | None = None
) -> Tensor:
    """Return `coefficients @ block`."""
    return _measured(block, block.new_tensor(coefficients) @ block, squares)


def ranked_mean(
    block: Tensor, coefficients: Sequence[float], squares: Tensor | None = None
) -> Tensor:
    """Return Σ_r c_r x_(r) / Σ_r c_r of every column, x_(0) ≤ … ≤ x_(n-1)."""
    rows = sort_rows(block.clone(), coefficients, torch.minimum, torch.maximum)
    return _measured(block, mean_by_rank(rows, coefficients), squares)


def nearest_mean(block: Tensor, k: int, squares: Tensor | None = None) -> Tensor:
    """Return the mean of the k values nearest to the median of every column.

    See `sorting.nearest_mean` for the window of neighbours in sorted order.
    """
    n = len(block)
    rows = sort_rows(block.clone(), range(1, n + 1), torch.minimum, torch.maximum)
    median = rows[(n - 1) // 2] / 2 + rows[n // 2] / 2
    for j, (leaves, enters) in enumerate(zip(rows[: n - k], rows[k:], strict=True)):
        nearer = (median - leaves) > (enters - median)
        rows[j % k].copy_(enters.where(nearer, rows[j % k]))
    return _measured(block, mean_by_rank(rows[:k], [1.0] * k), squares)


def weighted_median(
    block: Tensor,
    weights: Float64,
    guess: Tensor | None = None,
    squares: Tensor | None = None,
) -> Tensor:
    """Return the weighted median of every column, as NumPy computes it."""
    median = plain.weighted_median(block.cpu().numpy(), weights)
    return _measured(block, torch.as_tensor(median).to(block), squares)


def weighted_ranks(
    block: Tensor,
    weights: Float64,
    chosen: Callable[[Float64], Float64],
    squares: Tensor | None = None,
) -> Tensor:
    """Return the mean of every column, weighted by rank, as NumPy computes it."""
    mean = np.asarray(plain.weighted_ranks(block.cpu().numpy(), weights, chosen))
    return _measured(block, torch.as_tensor(mean).to(block), squares)


def _measured(block: Tensor, values: Tensor, squares: Tensor | None) -> Tensor:
    """Return the values; add the distances of the rows to them, if asked for."""
    if squares is not None:
        squares += squares_apart(block, values)
    return values
