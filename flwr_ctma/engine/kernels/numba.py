"""The inner loops, compiled by Numba: the fast form of those in NumPy."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flwr_ctma.engine.buffers import Array, Float64
from flwr_ctma.engine.kernels import llvm, loops
from flwr_ctma.engine.kernels import numpy as plain
from flwr_ctma.engine.kernels.network import network
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

independent_products = True

Addresses = np.ndarray[Any, np.dtype[np.uintp]]


def reader(rows: Sequence[Array] | Array, dtype: "np.dtype[Any]") -> Read:
    """Return a function that reads columns of the rows, less an origin, into a block.

    Rows that are not contiguous numbers of the dtype are read by NumPy.
    """
    slow, width = plain.reader(rows, dtype), rows[0].shape
    if not all(_contiguous(row, dtype) and row.shape == width for row in rows):
        return slow
    addresses = np.array([_address(row) for row in rows], np.uintp)

    def read(a: int, b: int, origin: Array | None, out: Array) -> None:
        less = 0
        if out.dtype != dtype:
            return slow(a, b, origin, out)
        if origin is not None:
            if not (_contiguous(origin, dtype) and origin.shape == width):
                return slow(a, b, origin, out)
            less = _address(origin) + a * dtype.itemsize
        loops.load(addresses + np.uintp(a * dtype.itemsize), np.uintp(less), out)

    return read


def combiner(rows: Sequence[Array] | Array, dtype: "np.dtype[Any]") -> Combine:
    """Return a function that sums columns of the rows, times coefficients.

    It reads every row once, without a copy. NumPy sums rows that are not contiguous
    numbers of the dtype.
    """
    slow, width = plain.combiner(rows, dtype), rows[0].shape
    if not all(_contiguous(row, dtype) and row.shape == width for row in rows):
        return slow
    addresses = np.array([_address(row) for row in rows], np.uintp)

    def combine(
        a: int, b: int, origin: Array | None, coefficients: Float64, out: Array
    ) -> None:
        less, inside = 0, 0 <= a <= b <= width[0] and out.shape == (b - a,)
        if not inside or not _contiguous(out, dtype):
            return slow(a, b, origin, coefficients, out)
        if origin is not None:
            if not (_contiguous(origin, dtype) and origin.shape == width):
                return slow(a, b, origin, coefficients, out)
            less = _address(origin) + a * dtype.itemsize
        first = addresses + np.uintp(a * dtype.itemsize)
        loops.combine(first, np.uintp(less), coefficients.astype(dtype), out)

    return combine


def products(
    strips: Iterable[Strip], n: int, rows: Sequence[int] | None = None
) -> Float64:
    """Return inner products of some rows with all: float64 between cells.

    The bits of a product depend on its two rows only, not on the others.
    """
    # The chosen rows come last: each is multiplied with the rows before it.
    order, first, lower = np.arange(n), 0, np.zeros((n, n))
    if rows is not None:
        order = np.append(np.delete(order, rows), rows)
        first = n - len(rows)
    for strip in strips:
        addresses, origin, width, copy = _in_place(strip)
        like = np.empty(0, strip.dtype)
        loops.products(addresses[order], np.uintp(origin), first, width, like, lower)
        del copy  # until here, for its addresses
    found: Float64 = np.empty((n - first, n))
    found[:, order] = (np.tril(lower) + np.tril(lower, -1).T)[first:]
    return found


def _in_place(strip: Strip) -> tuple[Addresses, int, int, Array | None]:
    """Return addresses of the rows and the origin, and the width of a strip.

    Rows that are not contiguous numbers of the dtype are copied by NumPy, less the
    origin.
    """
    rows, a, b, dtype, origin = strip
    step, copy = a * np.dtype(dtype).itemsize, None
    parts = rows if origin is None else [*rows, origin]
    if not all(_contiguous(part, dtype) and len(part) >= b for part in parts):
        copy = np.empty((len(rows), b - a), dtype)
        plain.reader(rows, dtype)(a, b, origin, copy)
        return _addresses(copy), 0, b - a, copy
    addresses = np.array([_address(row) for row in rows], np.uintp) + np.uintp(step)
    return addresses, 0 if origin is None else _address(origin) + step, b - a, None


def squares_apart(block: Array, middle: Array) -> Float64:
    """Return the squared distance of each row to a vector: float64 between cells."""
    block, squares = _in_rows(block), np.zeros(len(block))
    middle = np.ascontiguousarray(_fitting(middle, block), block.dtype)
    loops.squares(
        _addresses(block), _address(middle), block.shape[1], _like(block), squares
    )
    return squares


def weighted_sum(
    block: Array, coefficients: Float64, squares: Float64 | None = None
) -> Array:
    """Return `coefficients @ block`."""
    return _measured(block, plain.weighted_sum(block, coefficients), squares)


def weighted_ranks(
    block: Array,
    weights: Float64,
    chosen: Callable[[Float64], Float64],
    squares: Float64 | None = None,
) -> Array:
    """Return the mean of every column, weighted by rank, as NumPy computes it."""
    return _measured(block, plain.weighted_ranks(block, weights, chosen), squares)


def ranked_mean(
    block: Array, coefficients: Sequence[float], squares: Float64 | None = None
) -> Array:
    """Return Σ_r c_r x_(r) / Σ_r c_r of every column, x_(0) ≤ … ≤ x_(n-1)."""
    block, counts = _in_rows(block), tuple(map(float, coefficients))
    if len(block) <= llvm.LARGEST:
        return llvm.ranked_mean(block, counts, squares)
    out = np.empty(block.shape[1], block.dtype)
    by_rank = np.array(counts, out.dtype)
    loops.ranked(_addresses(block), _comparators(counts), by_rank, out)
    return _measured(block, out, squares)


def nearest_mean(block: Array, k: int, squares: Float64 | None = None) -> Array:
    """Return the mean of the k values nearest to the median of every column."""
    block = _in_rows(block)
    if len(block) <= llvm.LARGEST:
        return llvm.nearest_mean(block, k, squares)
    out = np.empty(block.shape[1], block.dtype)
    comparators = _comparators(tuple(map(float, range(1, len(block) + 1))))
    loops.nearest(_addresses(block), comparators, k, out)
    return _measured(block, out, squares)


def weighted_median(
    block: Array,
    weights: Float64,
    guess: Array | None = None,
    squares: Float64 | None = None,
) -> Array:
    """Return the weighted median of every column; a nearer guess takes less time."""
    block = _in_rows(block)
    if guess is None:
        middle = {(len(block) - 1) // 2, len(block) // 2}
        guess = ranked_mean(block, [float(r in middle) for r in range(len(block))])
    out = np.array(_fitting(guess, block), block.dtype)
    loops.weighted_median(_addresses(block), weights, out)
    return _measured(block, out, squares)


def _measured(block: Array, values: Array, squares: Float64 | None) -> Array:
    """Return the values; add the distances of the rows to them, if asked for."""
    if squares is not None:
        squares += squares_apart(block, values)
    return values


@lru_cache(maxsize=256)
def _comparators(coefficients: tuple[float, ...]) -> Array:
    """Return a network as rows: low wire, high wire, keep low, keep high."""
    return np.array(network(coefficients), np.intp).reshape(-1, 4)


def _contiguous(row: Array, dtype: "np.dtype[Any]") -> bool:
    flags = row.flags
    return flags.c_contiguous and flags.aligned and row.dtype == dtype


def _in_rows(block: Array) -> Array:
    """Return a block whose rows are contiguous: usually the block itself."""
    whole = block[:1].flags.c_contiguous and block.flags.aligned
    return block if whole else np.ascontiguousarray(block)


def _fitting(vector: Array, block: Array) -> Array:
    """Return a vector as wide as a block, or raise: addresses have no bounds."""
    return np.broadcast_to(vector, block.shape[1:])


def _address(row: Array) -> int:
    address: int = row.__array_interface__["data"][0]
    return address


def _addresses(block: Array) -> Addresses:
    """Return the addresses of the rows of a block."""
    steps = np.arange(len(block), dtype=np.intp) * block.strides[0]
    return (_address(block) + steps).astype(np.uintp)


def _like(block: Array) -> Array:
    """Return an array that tells compiled functions the dtype of the rows."""
    return np.empty(0, block.dtype)
