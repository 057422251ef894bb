"""Sorting networks: comparators that put the n values of every column in order.

A comparator (i, j) leaves the smaller of two values on wire i and the larger on wire j.
Which are compared does not depend on the values, so that all columns go through the
same steps at once, without a branch.
"""

from functools import lru_cache
from typing import NamedTuple

__all__ = ["Comparator", "network"]


class Comparator(NamedTuple):
    """Order the rows on two wires; a side that nobody reads is not computed."""

    low: int
    high: int
    keep_low: bool
    keep_high: bool


@lru_cache(maxsize=256)
def network(coefficients: tuple[float, ...]) -> tuple[Comparator, ...]:
    """Comparators that put enough of n rows in order to sum them by rank.

    Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2 M), from the end backwards without
    what does not change Σ_r c_r x_(r): a comparator whose wires no later one touches
    and which have the same coefficient, and the side of one that counts for nothing.

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
