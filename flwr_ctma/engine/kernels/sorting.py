"""Order statistics of every column at once, for NumPy arrays and torch tensors.

Run on whole rows, a comparator of a sorting network is `minimum` and `maximum` over all
columns, which is what processors do fastest.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flwr_ctma.engine.kernels.network import network

__all__ = ["nearest_mean", "ordered", "ranked_mean"]

# Above this many rows the vector sort of `np.sort` on columns laid out contiguously
# overtakes the network: measured on AVX-512, float32.
_NETWORK_LIMIT = 48
# What is sorted at a time: it stays in a core's own cache.
_SORTED_BYTES = 2**18


def ranked_mean(block: Any, coefficients: Sequence[float]) -> Any:
    """Σ_r c_r x_(r) / Σ_r c_r of every column, where x_(0) ≤ … ≤ x_(n-1).

    Parameters
    ----------
    block : array of shape (n, width)
        Rows of finite floats, each contiguous; overwritten.
    coefficients : sequence of n floats
        What each rank counts: 1, 0, or a fraction for a rank that is split.

    Returns
    -------
    array of shape (width,)

    Examples
    --------
    >>> ranked_mean(np.array([[3.0, 1.0], [1.0, 7.0], [2.0, 4.0]]), (0, 1, 0))
    array([2., 4.])
    """
    total = sum(coefficients)
    if isinstance(block, np.ndarray) and len(block) > _NETWORK_LIMIT:
        share = np.asarray(coefficients, block.dtype) / block.dtype.type(total)
        return np.concatenate([columns @ share for columns in _sorted(block)])
    rows = ordered(block, coefficients)
    counted = [
        row if c == 1 else row * c
        for c, row in zip(coefficients, rows, strict=True)
        if c
    ]
    mean = counted[0]
    for row in counted[1:]:
        mean += row
    if total != 1:
        mean /= total
    return mean


def nearest_mean(block: Any, k: int) -> Any:
    """Mean of the k values nearest to the median of every column.

    They are neighbours in sorted order: the window of the k smallest moves up by one
    value as long as the one that comes in, x_(j+k), is nearer to the median than the
    one that goes out, x_(j). Values outside the window are never added, so that what
    they are cannot be felt in its last digits.

    Parameters
    ----------
    block : array of shape (n, width)
        Rows of finite floats, each contiguous; overwritten.
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
    if isinstance(block, np.ndarray) and n > _NETWORK_LIMIT:
        return np.concatenate([_window_mean(c, k) for c in _sorted(block)])
    rows = ordered(block, range(1, n + 1))
    median = rows[(n - 1) // 2] / 2 + rows[n // 2] / 2
    replace = _replacer(median, median.shape)
    for j, (out, into) in enumerate(zip(rows[: n - k], rows[k:], strict=True)):
        replace(rows[j % k], out, into)
    mean = rows[0]
    for row in rows[1:k]:
        mean += row
    mean /= k
    return mean


def _sorted(block: Any) -> Iterator[Any]:
    """Columns of a block as sorted rows, a few at a time."""
    n, width = block.shape
    step = max(1, _SORTED_BYTES // (n * block.itemsize))
    for a in range(0, width, step):
        columns = block[:, a : a + step].T.copy()
        columns.sort(axis=1)
        yield columns


def _window_mean(values: Any, k: int) -> Any:
    n = values.shape[1]
    median = (values[:, (n - 1) // 2] / 2 + values[:, n // 2] / 2)[:, None]
    window = values[:, :k].copy()
    for j in range(0, n - k, k):
        out, into = values[:, j : min(j + k, n - k)], values[:, j + k : j + 2 * k]
        kept = window[:, : out.shape[1]]
        _replacer(median, kept.shape)(kept, out, into)
    return window.mean(axis=1)


def ordered(block: Any, coefficients: Sequence[float]) -> list[Any]:
    """Run the network of the coefficients over the rows of a block, in place."""
    low, high = _extrema(block)
    wires, spare = list(block), block[0] + 0
    for i, j, keep_low, keep_high in network(tuple(map(float, coefficients))):
        a, b = wires[i], wires[j]
        if keep_low and keep_high:
            low(a, b, out=spare)
            high(a, b, out=b)
            wires[i], spare = spare, a
        elif keep_low:
            low(a, b, out=a)
        else:
            high(a, b, out=b)
    return wires


def _replacer(median: Any, shape: tuple[int, ...]) -> Callable[[Any, Any, Any], None]:
    """What puts into a row each number that is nearer to the median than what goes out.

    Bit by bit, as a choice by `where` would cost a branch for every number; and in the
    same few arrays every time, as new ones would be new pages.
    """
    if not isinstance(median, np.ndarray):
        return lambda row, out, into: row.copy_(
            into.where((median - out) > (into - median), row)
        )
    below, above = np.empty((2, *shape), median.dtype)
    moved = np.empty(shape, bool)
    integer = np.dtype(f"i{median.itemsize}")
    change, mask = below.view(integer), above.view(integer)

    def replace(row: Any, out: Any, into: Any) -> None:
        np.subtract(median, out, out=below)
        np.subtract(into, median, out=above)
        np.greater(below, above, out=moved)
        np.copyto(mask, moved)
        np.negative(mask, out=mask)
        bits = row.view(integer)
        np.bitwise_xor(bits, into.view(integer), out=change)
        np.bitwise_and(change, mask, out=change)
        np.bitwise_xor(bits, change, out=bits)

    return replace


def _extrema(block: Any) -> tuple[Any, Any]:
    if isinstance(block, np.ndarray):
        return np.minimum, np.maximum
    import torch

    return torch.minimum, torch.maximum
