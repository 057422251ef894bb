"""The inner loops of the engine, compiled: what is done to one block of columns."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.kernels import loops
from flwr_ctma.engine.kernels import numpy as plain
from flwr_ctma.engine.kernels.network import network
from flwr_ctma.engine.kernels.numpy import Reader
from flwr_ctma.engine.stack import Float64

__all__ = [
    "nearest_mean",
    "products",
    "ranked_mean",
    "reader",
    "squares_apart",
    "weighted_median",
]

Addresses = np.ndarray[Any, np.dtype[np.uintp]]


def reader(rows: Sequence[Array], dtype: "np.dtype[Any]") -> Reader:
    """Give what copies columns a to b of the rows, less an origin, into a block."""
    slow, width = plain.reader(rows, dtype), rows[0].shape
    if not all(_in_one_piece(row, dtype) and row.shape == width for row in rows):
        return slow
    addresses = np.array([_address(row) for row in rows], np.uintp)

    def read(a: int, b: int, origin: Array | None, out: Array) -> None:
        less = 0
        if out.dtype != dtype:
            return slow(a, b, origin, out)
        if origin is not None:
            if not (_in_one_piece(origin, dtype) and origin.shape == width):
                return slow(a, b, origin, out)
            less = _address(origin) + a * dtype.itemsize
        loops.load(addresses + np.uintp(a * dtype.itemsize), np.uintp(less), out)

    return read


def products(blocks: Iterable[Array], n: int, first: int = 0) -> Float64:
    """Inner products of n rows, from the first on, with all: float64 between cells."""
    # The last row again and again, up to whole tiles: its products are not used.
    rows = np.minimum(np.arange(n + -n % 4), n - 1)
    lower = np.zeros((len(rows), len(rows)))
    for block in blocks:
        block = _in_rows(block)
        addresses, width = _addresses(block)[rows], block.shape[1]
        loops.products(addresses, first // 4 * 4, width, _like(block), lower)
    both: Float64 = np.tril(lower) + np.tril(lower, -1).T
    return both[first:n, :n]


def squares_apart(block: Array, middle: Array) -> Float64:
    """Squared distance of each row to a vector, in float64 between cells."""
    block, squares = _in_rows(block), np.zeros(len(block))
    middle = np.ascontiguousarray(_fitting(middle, block), block.dtype)
    loops.squares(
        _addresses(block), _address(middle), block.shape[1], _like(block), squares
    )
    return squares


def ranked_mean(block: Array, coefficients: Sequence[float]) -> Array:
    """Σ_r c_r x_(r) / Σ_r c_r of every column, where x_(0) ≤ … ≤ x_(n-1)."""
    block, out = _in_rows(block), np.empty(block.shape[1], block.dtype)
    counts = tuple(map(float, coefficients))
    by_rank = np.array(counts, out.dtype)
    loops.ranked(_addresses(block), _comparators(counts), by_rank, out)
    return out


def nearest_mean(block: Array, k: int) -> Array:
    """Mean of the k values nearest to the median of every column."""
    block, out = _in_rows(block), np.empty(block.shape[1], block.dtype)
    comparators = _comparators(tuple(map(float, range(1, len(block) + 1))))
    loops.nearest(_addresses(block), comparators, k, out)
    return out


def weighted_median(
    block: Array, weights: Float64, guess: Array | None = None
) -> Array:
    """Weighted median of every column, found from a guess, the nearer the sooner."""
    block = _in_rows(block)
    if guess is None:
        middle = {(len(block) - 1) // 2, len(block) // 2}
        guess = ranked_mean(block, [float(r in middle) for r in range(len(block))])
    out = np.array(_fitting(guess, block), block.dtype)
    loops.weighted_median(_addresses(block), weights, out)
    return out


@lru_cache(maxsize=256)
def _comparators(coefficients: tuple[float, ...]) -> Array:
    """Give a network as rows of low wire, high wire, and which sides are kept."""
    return np.array(network(coefficients), np.intp).reshape(-1, 4)


def _in_one_piece(row: Array, dtype: "np.dtype[Any]") -> bool:
    flags = row.flags
    return flags.c_contiguous and flags.aligned and row.dtype == dtype


def _in_rows(block: Array) -> Array:
    """Give a block whose rows are in one piece each: itself, as a rule."""
    whole = block[:1].flags.c_contiguous and block.flags.aligned
    return block if whole else np.ascontiguousarray(block)


def _fitting(vector: Array, block: Array) -> Array:
    """Give a vector as wide as a block, or a ValueError: addresses have no bounds."""
    return np.broadcast_to(vector, block.shape[1:])


def _address(row: Array) -> int:
    address: int = row.__array_interface__["data"][0]
    return address


def _addresses(block: Array) -> Addresses:
    """Where the rows of a block begin."""
    steps = np.arange(len(block), dtype=np.intp) * block.strides[0]
    return (_address(block) + steps).astype(np.uintp)


def _like(block: Array) -> Array:
    """Tell compiled functions what the rows hold."""
    return np.empty(0, block.dtype)
