"""The inner loops in NumPy: the readable reference of the compiled ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flwr_ctma.engine.buffers import Array, Float64, scratch
from flwr_ctma.engine.kernels import sorting
from flwr_ctma.engine.kernels.protocol import Combine, Read, Strip

__all__ = [
    "combiner",
    "independent_products",
    "nearest_mean",
    "products",
    "ranked_mean",
    "reader",
    "squares_apart",
    "weighted_median",
    "weighted_ranks",
    "weighted_sum",
]

independent_products = False

# Columns of a cell, a matrix product of its own. A block holds whole cells. A power of
# two would let all rows of a column compete for the same lines of the cache.
CELL = 1008
# Numbers that are copied at a time: they stay in a core's second cache.
_COPIED = 2**18


def reader(rows: Sequence[Array] | Array, dtype: "np.dtype[Any]") -> Read:
    """Return a function that reads columns of the rows, less an origin, into a block.

    NumPy converts each row to the dtype of the block.
    """

    def read(a: int, b: int, origin: Array | None, out: Array) -> None:
        for row, target in zip(rows, out, strict=False):
            if origin is None:
                np.copyto(target, row[a:b], casting="unsafe")
            else:
                np.subtract(
                    row[a:b], origin[a:b], out=target, dtype=out.dtype, casting="unsafe"
                )

    return read


def combiner(rows: Sequence[Array] | Array, dtype: "np.dtype[Any]") -> Combine:
    """Return a function that sums columns of the rows, times coefficients."""
    read = reader(rows, dtype)

    def combine(
        a: int, b: int, origin: Array | None, coefficients: Float64, out: Array
    ) -> None:
        block = scratch(len(rows), b - a, out.dtype)
        read(a, b, origin, block)
        np.matmul(coefficients.astype(out.dtype), block, out=out)

    return combine


def products(
    strips: Iterable[Strip], n: int, rows: Sequence[int] | None = None
) -> Float64:
    """Return inner products of some rows with all: float64 between cells.

    All cells are multiplied in one call. NumPy holds the interpreter's lock, and stops
    the other threads, during one product of few rows, but not during a stack of them.
    """
    some: Any = slice(None) if rows is None else list(rows)
    total = np.zeros((n if rows is None else len(rows), n))
    for strip in strips:
        for block in _blocks(strip):
            cells, rest = _cells(block)
            cells = cells.swapaxes(0, 1)
            found = cells[:, some] @ cells.swapaxes(1, 2)
            total += found.sum(axis=0, dtype=np.float64)
            total += rest[some] @ rest.T
    return total


def _blocks(strip: Strip) -> Iterator[Array]:
    """Yield the columns of a strip, copied unless they are a view of a block."""
    rows, a, b, dtype, origin = strip
    if isinstance(rows, np.ndarray) and rows.dtype == dtype and origin is None:
        yield rows[:, a:b]
        return
    read, width = reader(rows, dtype), max(1, _COPIED // len(rows) // CELL) * CELL
    for start in range(a, b, width):
        stop = min(start + width, b)
        block = scratch(len(rows), stop - start, dtype)
        read(start, stop, origin, block)
        yield block


def squares_apart(block: Array, middle: Array) -> Float64:
    """Return the squared distance of each row to a vector: float64 between cells."""
    apart = scratch.beside(block)
    np.subtract(block, middle, out=apart)
    cells, rest = _cells(apart)
    squares: Float64 = (cells[..., None, :] @ cells[..., None]).sum(
        axis=(1, 2, 3), dtype=np.float64
    )
    squares += np.einsum("ij,ij->i", rest, rest)
    return squares


def weighted_sum(
    block: Array, coefficients: Float64, squares: Float64 | None = None
) -> Array:
    """Return `coefficients @ block`."""
    # `matmul` reads a view where it is; `dot` would copy it first.
    total: Array = np.matmul(coefficients.astype(block.dtype), block)
    return _measured(block, total, squares)


def ranked_mean(
    block: Array, coefficients: Sequence[float], squares: Float64 | None = None
) -> Array:
    """Return Σ_r c_r x_(r) / Σ_r c_r of every column, x_(0) ≤ … ≤ x_(n-1)."""
    copy = scratch.copy(block)
    mark = _mark(copy)
    return _measured(block, sorting.ranked_mean(copy, coefficients) + mark, squares)


def nearest_mean(block: Array, k: int, squares: Float64 | None = None) -> Array:
    """Return the mean of the k values nearest to the median of every column."""
    copy = scratch.copy(block)
    mark = _mark(copy)
    return _measured(block, sorting.nearest_mean(copy, k) + mark, squares)


def weighted_median(
    block: Array,
    weights: Float64,
    guess: Array | None = None,
    squares: Float64 | None = None,
) -> Array:
    """Return the weighted median of every column; sorting does not use the guess.

    It is the midpoint of the values where the cumulative weight reaches and passes one
    half.
    """
    order = np.argsort(block, axis=0, kind="stable")
    found = [
        np.take_along_axis(block, order[rank, np.arange(order.shape[1])][None], 0)[0]
        for rank in half_ranks(weights[order])
    ]
    median = found[0] / 2 + found[1] / 2 + _mark(scratch.copy(block))
    return _measured(block, median, squares)


def weighted_ranks(
    block: Array,
    weights: Float64,
    chosen: Callable[[Float64], Float64],
    squares: Float64 | None = None,
) -> Array:
    """Return the mean of every column, weighted by `chosen(sorted weights)`."""
    order = np.argsort(block, axis=0, kind="stable")
    kept, values = chosen(weights[order]), np.take_along_axis(block, order, axis=0)
    mean = (kept * values).sum(axis=0) / kept.sum(axis=0)
    mean[~np.isfinite(values).all(axis=0)] = np.nan
    return _measured(block, mean, squares)


def half_ranks(weights: Float64) -> tuple[Array, Array]:
    """Return the ranks where the cumulative weight reaches, and passes, one half.

    Parameters
    ----------
    weights : ndarray of shape (n, width)
        Of sorted values.
    """
    total = np.cumsum(weights, axis=0)
    half = total[-1] / 2
    # Sums of weights in different orders differ by rounding: equality is up to that.
    close = np.abs(total - half) <= 1e-12 * half
    reached = (total >= half) | close
    passed = (total > half) & ~close
    return np.argmax(reached, axis=0), np.argmax(passed, axis=0)


def _measured(block: Array, values: Array, squares: Float64 | None) -> Array:
    """Return the values; add the distances of the rows to them, if asked for."""
    if squares is not None:
        squares += squares_apart(block, values)
    return values


def _mark(block: Array) -> Array:
    """Return 0 for every column, or NaN for a column that is not finite."""
    flat = block.reshape(-1)
    if np.isfinite(np.dot(flat, flat)):  # the cheapest sign that all numbers are
        return np.zeros(1, block.dtype)
    finite = np.isfinite(block).all(axis=0)
    return np.where(finite, 0, np.nan).astype(block.dtype)


def _cells(block: Array) -> tuple[Array, Array]:
    """View a block as (rows, cells, columns), and the columns that are left."""
    whole = block.shape[1] // CELL * CELL
    return block[:, :whole].reshape(len(block), -1, CELL), block[:, whole:]
