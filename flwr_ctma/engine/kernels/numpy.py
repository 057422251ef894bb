"""The inner loops of the engine in NumPy: what is done to one block of columns."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flwr_ctma.engine.buffers import Array, scratch
from flwr_ctma.engine.kernels import sorting
from flwr_ctma.engine.stack import Float64

__all__ = [
    "nearest_mean",
    "products",
    "ranked_mean",
    "reader",
    "squares_apart",
    "weighted_median",
]

Reader = Callable[[int, int, Array | None, Array], None]

# Columns of a cell, a matrix product of its own. A block holds whole cells; were they a
# power of two, all rows of a column would compete for the same lines of the cache.
CELL = 1008


def reader(rows: Sequence[Array], dtype: "np.dtype[Any]") -> Reader:
    """Give what copies columns a to b of the rows, less an origin, into a block."""

    def read(a: int, b: int, origin: Array | None, out: Array) -> None:
        for row, target in zip(rows, out, strict=False):
            if origin is None:
                np.copyto(target, row[a:b], casting="unsafe")
            else:
                np.subtract(
                    row[a:b], origin[a:b], out=target, dtype=out.dtype, casting="unsafe"
                )

    return read


def products(blocks: Iterable[Array], n: int, first: int = 0) -> Float64:
    """Inner products of n rows, from the first on, with all: float64 between cells.

    All cells in one call: NumPy keeps the interpreter's lock, and with it the other
    threads, during one product of few rows, but not during a stack of products.
    """
    total = np.zeros((n - first, n))
    for block in blocks:
        cells, rest = _cells(block)
        cells = cells.swapaxes(0, 1)
        found = cells[:, first:] @ cells.swapaxes(1, 2)
        total += found.sum(axis=0, dtype=np.float64)
        total += rest[first:] @ rest.T
    return total


def squares_apart(block: Array, middle: Array) -> Float64:
    """Squared distance of each row to a vector, in float64 between cells."""
    apart = scratch.beside(block)
    np.subtract(block, middle, out=apart)
    cells, rest = _cells(apart)
    squares: Float64 = (cells[..., None, :] @ cells[..., None]).sum(
        axis=(1, 2, 3), dtype=np.float64
    )
    squares += np.einsum("ij,ij->i", rest, rest)
    return squares


def ranked_mean(block: Array, coefficients: Sequence[float]) -> Array:
    """Σ_r c_r x_(r) / Σ_r c_r of every column, where x_(0) ≤ … ≤ x_(n-1)."""
    copy = scratch.copy(block)
    mark = _mark(copy)
    mean: Array = sorting.ranked_mean(copy, coefficients) + mark
    return mean


def nearest_mean(block: Array, k: int) -> Array:
    """Mean of the k values nearest to the median of every column."""
    copy = scratch.copy(block)
    mark = _mark(copy)
    mean: Array = sorting.nearest_mean(copy, k) + mark
    return mean


def weighted_median(
    block: Array, weights: Float64, guess: Array | None = None
) -> Array:
    """Weighted median of every column; sorting has no use for a guess.

    The value where the cumulative weight reaches one half, and the midpoint to the one
    where it passes one half if that is another.
    """
    order = np.argsort(block, axis=0, kind="stable")
    found = [
        np.take_along_axis(block, order[rank, np.arange(order.shape[1])][None], 0)[0]
        for rank in half_ranks(weights[order])
    ]
    median: Array = found[0] / 2 + found[1] / 2 + _mark(scratch.copy(block))
    return median


def half_ranks(weights: Float64) -> tuple[Array, Array]:
    """Where the cumulative weight of sorted values reaches, and passes, one half."""
    total = np.cumsum(weights, axis=0)
    half = total[-1] / 2
    # Sums of weights in different orders differ by rounding: equality is up to that.
    close = np.abs(total - half) <= 1e-12 * half
    reached = (total >= half) | close
    passed = (total > half) & ~close
    return np.argmax(reached, axis=0), np.argmax(passed, axis=0)


def _mark(block: Array) -> Array:
    """0 for every column, or NaN for one that is not finite."""
    flat = block.reshape(-1)
    if np.isfinite(np.dot(flat, flat)):  # the cheapest sign that all numbers are
        return np.zeros(1, block.dtype)
    finite = np.isfinite(block).all(axis=0)
    return np.where(finite, 0, np.nan).astype(block.dtype)


def _cells(block: Array) -> tuple[Array, Array]:
    """View a block as (rows, cells, columns), and the columns over."""
    whole = block.shape[1] // CELL * CELL
    return block[:, :whole].reshape(len(block), -1, CELL), block[:, whole:]
