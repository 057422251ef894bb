"""The inner loops of the engine in NumPy: what is done to one block of columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flwr_ctma import sorting
from flwr_ctma.scratch import scratch

__all__ = [
    "combine",
    "load",
    "nearest_mean",
    "products",
    "ranked_mean",
    "seems_finite",
    "squares_apart",
]

Array = np.ndarray[Any, np.dtype[Any]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]

# Columns of a cell, a matrix product of its own. A block holds whole cells; were they a
# power of two, all rows of a column would compete for the same lines of the cache.
CELL = 1008


def load(rows: Sequence[Array], origin: Array | None, out: Array) -> None:
    """Copy rows, less the origin, into a block."""
    for row, target in zip(rows, out, strict=False):
        if origin is None:
            np.copyto(target, row, casting="unsafe")
        else:
            np.subtract(row, origin, out=target, dtype=out.dtype, casting="unsafe")


def combine(coefficients: Array, block: Array, out: Array) -> None:
    """Write `coefficients @ block`."""
    # `matmul` reads a view where it is; `dot` would copy it first.
    np.matmul(coefficients, block, out=out)


def seems_finite(block: Array) -> bool:
    """Whether the sum of squares is: the cheapest sign that all numbers are."""
    return bool(np.isfinite(np.einsum("ij,ij->", block, block)))


def products(block: Array, first: int = 0) -> Float64:
    """Inner products of the rows from the first on with all, in float64 between cells.

    All cells in one call: NumPy keeps the interpreter's lock, and with it the other
    threads, during one product of few rows, but not during a stack of products.
    """
    cells, rest = _cells(block)
    cells = cells.swapaxes(0, 1)
    total: Float64 = (cells[:, first:] @ cells.swapaxes(1, 2)).sum(
        axis=0, dtype=np.float64
    )
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
    mean: Array = sorting.ranked_mean(scratch.copy(block), coefficients)
    return mean.copy()  # it may be a row of the scratch


def nearest_mean(block: Array, k: int) -> Array:
    """Mean of the k values nearest to the median of every column."""
    mean: Array = sorting.nearest_mean(scratch.copy(block), k)
    return mean.copy()  # it may be a row of the scratch


def _cells(block: Array) -> tuple[Array, Array]:
    """View a block as (rows, cells, columns), and the columns over."""
    whole = block.shape[1] // CELL * CELL
    return block[:, :whole].reshape(len(block), -1, CELL), block[:, whole:]
