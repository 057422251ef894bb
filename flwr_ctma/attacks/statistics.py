"""Weighted mean and standard deviation of rows, one block of columns at a time."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.engine.updates import Updates

__all__ = ["weighted_mean", "weighted_std"]

# Two float64 blocks of 17 rows stay in a core's cache.
_WIDTH = 4096


def weighted_mean(
    rows: NDArray[np.floating[Any]], weights: NDArray[np.float64]
) -> NDArray[np.floating[Any]]:
    """Return the weighted mean of the rows, in their dtype.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Floats.
    weights : ndarray of shape (n,)
        Not all zero.

    Examples
    --------
    >>> weighted_mean(np.array([[1.0], [4.0]]), np.array([2.0, 1.0]))
    array([2.])
    """
    shares: NDArray[np.float64] = weights / weights.sum()
    vector: NDArray[Any] = Updates.of(rows).combine(shares)[0]
    return vector.astype(rows.dtype, copy=False)


def weighted_std(
    rows: NDArray[np.floating[Any]], weights: NDArray[np.float64]
) -> NDArray[np.floating[Any]]:
    """Return the weighted standard deviation of each column, in the rows' dtype.

    The rows are the population: the sum of squares is divided by the sum of the
    weights, as in the code of ALIE's authors. (ByzFL and Blades divide by n − 1.)

    Examples
    --------
    >>> weighted_std(np.array([[1.0], [4.0]]), np.array([1.0, 1.0]))
    array([1.5])
    """
    shares = weights / weights.sum()
    out = np.empty(rows.shape[1], rows.dtype)
    for start in range(0, rows.shape[1], _WIDTH):
        block = rows[:, start : start + _WIDTH].astype(np.float64)
        block -= shares @ block
        np.multiply(block, block, out=block)
        out[start : start + _WIDTH] = np.sqrt(shares @ block)
    return out
