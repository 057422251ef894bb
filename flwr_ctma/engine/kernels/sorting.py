"""Order statistics of every column, for NumPy arrays of finite numbers."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.kernels.network import mean_by_rank, sort_rows

__all__ = ["nearest_mean", "ranked_mean"]

# Above this many rows the vector sort of `np.sort` on contiguous columns is faster than
# the network: measured on AVX-512, float32.
_NETWORK_LIMIT = 48
# Bytes sorted at a time: they stay in a core's second cache.
_SORTED_BYTES = 2**18

Replace = Callable[[Array, Array, Array], None]


def ranked_mean(block: Array, coefficients: Sequence[float]) -> Array:
    """Return Σ_r c_r x_(r) / Σ_r c_r of every column, where x_(0) ≤ … ≤ x_(n-1).

    Parameters
    ----------
    block : array of shape (n, width)
        Finite rows, each contiguous; overwritten.
    coefficients : sequence of n floats
        The weight of each rank: 1, 0, or a fraction for a rank that is split.

    Returns
    -------
    array of shape (width,)

    Examples
    --------
    >>> ranked_mean(np.array([[3.0, 1.0], [1.0, 7.0], [2.0, 4.0]]), (0, 1, 0))
    array([2., 4.])
    """
    if len(block) > _NETWORK_LIMIT:
        total = block.dtype.type(sum(coefficients))
        share = np.asarray(coefficients, block.dtype) / total
        return np.concatenate([columns @ share for columns in _sorted(block)])
    rows = sort_rows(block, coefficients, np.minimum, np.maximum)
    mean: Array = mean_by_rank(rows, coefficients)
    return mean


def nearest_mean(block: Array, k: int) -> Array:
    """Return the mean of the k values nearest to the median of every column.

    These values are neighbours in sorted order. The window of the k smallest moves up
    by one value while the next value, x_(j+k), is nearer to the median than the first
    of the window, x_(j). Values outside the window are never added, so they cannot
    change the last digits.

    Parameters
    ----------
    block : array of shape (n, width)
        Finite rows, each contiguous; overwritten.
    k : int

    Returns
    -------
    array of shape (width,)

    Examples
    --------
    >>> nearest_mean(np.array([[1.0], [2.0], [4.0], [99.0]]), 3)
    array([2.33333333])
    """
    n = len(block)
    if n > _NETWORK_LIMIT:
        return np.concatenate([_window_mean(columns, k) for columns in _sorted(block)])
    rows = sort_rows(block, range(1, n + 1), np.minimum, np.maximum)
    median = rows[(n - 1) // 2] / 2 + rows[n // 2] / 2
    replace = _replacer(median, median.shape)
    for j, (leaves, enters) in enumerate(zip(rows[: n - k], rows[k:], strict=True)):
        replace(rows[j % k], leaves, enters)
    mean: Array = mean_by_rank(rows[:k], [1.0] * k)
    return mean


def _sorted(block: Array) -> Iterator[Array]:
    """Yield the columns of a block as sorted rows, a few at a time."""
    n, width = block.shape
    step = max(1, _SORTED_BYTES // (n * block.itemsize))
    for a in range(0, width, step):
        columns = block[:, a : a + step].T.copy()
        columns.sort(axis=1)
        yield columns


def _window_mean(values: Array, k: int) -> Array:
    n = values.shape[1]
    median = (values[:, (n - 1) // 2] / 2 + values[:, n // 2] / 2)[:, None]
    window = values[:, :k].copy()
    for j in range(0, n - k, k):
        leaves, enters = values[:, j : min(j + k, n - k)], values[:, j + k : j + 2 * k]
        kept = window[:, : leaves.shape[1]]
        _replacer(median, kept.shape)(kept, leaves, enters)
    mean: Array = window.mean(axis=1)
    return mean


def _replacer(median: Array, shape: tuple[int, ...]) -> Replace:
    """Return a function that replaces numbers in a row.

    It takes each number that enters if that is nearer to the median than the number
    that leaves. It works on bits, because a choice by `where` costs a branch for every
    number, and in the same few arrays every time, because new ones are new pages.
    """
    below, above = np.empty((2, *shape), median.dtype)
    moved = np.empty(shape, bool)
    integer = np.dtype(f"i{median.itemsize}")
    change, mask = below.view(integer), above.view(integer)

    def replace(row: Array, leaves: Array, enters: Array) -> None:
        np.subtract(median, leaves, out=below)
        np.subtract(enters, median, out=above)
        np.greater(below, above, out=moved)
        np.copyto(mask, moved)
        np.negative(mask, out=mask)
        bits = row.view(integer)
        np.bitwise_xor(bits, enters.view(integer), out=change)
        np.bitwise_and(change, mask, out=change)
        np.bitwise_xor(bits, change, out=bits)

    return replace
