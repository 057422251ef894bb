"""The inner loops of the engine, compiled: what is done to one block of columns."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flwr_ctma import loops, plain
from flwr_ctma.network import network
from flwr_ctma.plain import combine

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
Addresses = np.ndarray[Any, np.dtype[np.uintp]]


def load(rows: Sequence[Array], origin: Array | None, out: Array) -> None:
    """Copy rows, less the origin, into a block."""
    given = rows if origin is None else [*rows, origin]
    if not all(_alike(row, out[0]) for row in given):
        plain.load(rows, origin, out)
        return
    loops.load(
        np.array([_address(row) for row in rows], np.uintp),
        np.uintp(0 if origin is None else _address(origin)),
        out,
    )


def seems_finite(block: Array) -> bool:
    """Whether all numbers are finite."""
    block = _in_rows(block)
    return bool(loops.finite(_addresses(block), block.shape[1], _like(block)))


def products(block: Array, first: int = 0) -> Float64:
    """Inner products of the rows from the first on with all, float64 between cells."""
    block = _in_rows(block)
    n, width = block.shape
    # The last row again and again, up to whole tiles: its products are not used.
    addresses = np.pad(_addresses(block), (0, -n % 4), mode="edge")
    lower = np.zeros((len(addresses), len(addresses)))
    loops.products(addresses, first // 4 * 4, width, _like(block), lower)
    both: Float64 = np.tril(lower) + np.tril(lower, -1).T
    return both[first:n, :n]


def squares_apart(block: Array, middle: Array) -> Float64:
    """Squared distance of each row to a vector, in float64 between cells."""
    block, squares = _in_rows(block), np.zeros(len(block))
    middle = np.ascontiguousarray(middle, block.dtype)
    loops.squares(
        _addresses(block), _address(middle), block.shape[1], _like(block), squares
    )
    return squares


def ranked_mean(block: Array, coefficients: Sequence[float]) -> Array:
    """Σ_r c_r x_(r) / Σ_r c_r of every column, where x_(0) ≤ … ≤ x_(n-1)."""
    block, out = _in_rows(block), np.empty(block.shape[1], block.dtype)
    comparators = _comparators(tuple(map(float, coefficients)))
    loops.ranked(_addresses(block), comparators, np.array(coefficients, out.dtype), out)
    return out


def nearest_mean(block: Array, k: int) -> Array:
    """Mean of the k values nearest to the median of every column."""
    block, out = _in_rows(block), np.empty(block.shape[1], block.dtype)
    comparators = _comparators(tuple(map(float, range(1, len(block) + 1))))
    loops.nearest(_addresses(block), comparators, k, out)
    return out


@lru_cache(maxsize=256)
def _comparators(coefficients: tuple[float, ...]) -> Array:
    """Give a network as rows of low wire, high wire, and which sides are kept."""
    return np.array(network(coefficients), np.intp).reshape(-1, 4)


def _alike(row: Array, other: Array) -> bool:
    """Whether a row holds the same numbers as another, as many, and in one piece."""
    whole = row.flags.c_contiguous and row.flags.aligned
    return whole and row.dtype == other.dtype and row.shape == other.shape


def _in_rows(block: Array) -> Array:
    """Give a block whose rows are in one piece each: itself, as a rule."""
    whole = block[:1].flags.c_contiguous and block.flags.aligned
    return block if whole else np.ascontiguousarray(block)


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
