"""Mean and standard deviation of rows, column block by column block."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.engine.updates import Updates

__all__ = ["deviation", "mean"]

# Two float64 blocks of 17 rows stay in a core's cache.
_WIDTH = 4096


def mean(
    rows: NDArray[np.floating[Any]], weights: NDArray[np.float64]
) -> NDArray[np.floating[Any]]:
    """Weighted mean of the rows, in their dtype.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Floats.
    weights : ndarray of shape (n,)
        Not all zero.

    Examples
    --------
    >>> mean(np.array([[1.0], [4.0]]), np.array([2.0, 1.0]))
    array([2.])
    """
    shares: NDArray[np.float64] = weights / weights.sum()
    vector: NDArray[Any] = Updates.of(rows).combine(shares)[0]
    return vector.astype(rows.dtype, copy=False)


def deviation(
    rows: NDArray[np.floating[Any]], weights: NDArray[np.float64]
) -> NDArray[np.floating[Any]]:
    """Weighted standard deviation of each column, in the rows' dtype.

    The rows are all there is, not a sample: the sum of squares is divided by the sum of
    the weights, as in the code of ALIE's authors. (ByzFL and Blades divide by n − 1.)

    Examples
    --------
    >>> deviation(np.array([[1.0], [4.0]]), np.array([1.0, 1.0]))
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
