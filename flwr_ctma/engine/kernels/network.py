"""Sorting networks: comparators that sort the n values of every column.

A comparator (i, j) leaves the smaller of two values on wire i and the larger on wire j.
The choice of comparators does not depend on the values, so all columns go through the
same steps at once, without a branch.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["Comparator", "mean_by_rank", "network", "sort_rows"]


class Comparator(NamedTuple):
    """Sort the rows on two wires; a side that no later step reads is skipped."""

    low: int
    high: int
    keep_low: bool
    keep_high: bool


@lru_cache(maxsize=256)
def network(coefficients: tuple[float, ...]) -> tuple[Comparator, ...]:
    """Return the comparators that sort n rows far enough for Σ_r c_r x_(r).

    Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2 M), pruned from the end backwards.
    Two things do not change the sum and are dropped: a comparator whose two wires have
    the same coefficient and no later comparator, and a side with coefficient 0 that no
    later comparator reads.

    Examples
    --------
    >>> len(network((1.0, 2.0, 3.0))), len(network((1.0, 1.0, 1.0)))
    (3, 0)
    """
    read: set[int] = set()
    kept = []
    for low, high in reversed(_merge_exchange(len(coefficients))):
        if {low, high} & read or coefficients[low] != coefficients[high]:
            kept.append(
                Comparator(
                    low,
                    high,
                    low in read or coefficients[low] != 0,
                    high in read or coefficients[high] != 0,
                )
            )
            read |= {low, high}
    return tuple(reversed(kept))


def sort_rows(
    block: Any,
    coefficients: Sequence[float],
    minimum: Callable[..., Any],
    maximum: Callable[..., Any],
) -> list[Any]:
    """Run the network of the coefficients over the rows of a block, in place.

    Run on whole rows, a comparator is one minimum and one maximum over all columns.

    Parameters
    ----------
    block : array or tensor of shape (n, width)
        Overwritten.
    coefficients : sequence of n floats
        The coefficient of each rank, for `network`.
    minimum, maximum : callable
        Functions `(a, b, out=)` of the array's library.

    Returns
    -------
    list of n rows
        The row of each rank, where its coefficient is not 0.
    """
    wires, spare = list(block), block[0] + 0
    for i, j, keep_low, keep_high in network(tuple(map(float, coefficients))):
        a, b = wires[i], wires[j]
        if keep_low and keep_high:
            minimum(a, b, out=spare)
            maximum(a, b, out=b)
            wires[i], spare = spare, a
        elif keep_low:
            minimum(a, b, out=a)
        else:
            maximum(a, b, out=b)
    return wires


def mean_by_rank(rows: Sequence[Any], coefficients: Sequence[float]) -> Any:
    """Return Σ_r c_r rows[r] / Σ_r c_r; the rows may be overwritten."""
    counted = [
        row if c == 1 else row * c
        for c, row in zip(coefficients, rows, strict=True)
        if c
    ]
    mean = counted[0]
    for row in counted[1:]:
        mean += row
    total = sum(coefficients)
    if total != 1:
        mean /= total
    return mean


def _merge_exchange(n: int) -> list[tuple[int, int]]:
    pairs = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p:
        q, r, d = top, 0, p
        while d:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs
