"""Random groups of rows: how many Byzantine ones each must bear, and how many are lost.

Of n rows b are Byzantine. They are dealt at random into m groups, whose sizes differ by
at most one. A group is lost if it holds more than k Byzantine rows. With

    p = P[Hypergeometric(n, b, ⌈n/m⌉) > k]

each group is lost with a probability of at most p, and more than F groups are with

    P ≤ exp(−m KL(a ‖ p)),    a = (F + 1)/m > p,
    P = 0                     if (k + 1)(F + 1) > b

KL(a ‖ p) = a ln(a/p) + (1 − a) ln((1 − a)/(1 − p)). The numbers of Byzantine rows in
the groups are negatively associated, as where b balls fall among n places is (Joag-Dev
and Proschan, "Negative association of random variables", Ann. Statist. 1983, Theorem
2.11), so indicators that grow with them are, and Chernoff's bound holds for their sum
as if they were independent (Dubhashi and Ranjan, "Balls and bins", 1998, Proposition
5). The second line needs no chance: F + 1 lost groups hold (k + 1)(F + 1) Byzantine
rows, wherever they are.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

from flwr_ctma.sampling import beyond

__all__ = ["Levels", "chance_of_loss", "levels"]

# Rows of a group for which inner products take about as long as reading the rows.
_CHEAP = 64
# Of the margin that all rows together have.
_KEPT = 0.5


@dataclass(frozen=True)
class Levels:
    """What each level of two has to bear.

    Parameters
    ----------
    groups : int
        m.
    size : int
        Rows of the smallest group.
    within : int
        k, Byzantine rows of a group that is not lost.
    across : int
        F, groups that may be lost.
    """

    groups: int
    size: int
    within: int
    across: int

    @property
    def margin(self) -> float:
        """(1 − 2k/s)(1 − 2F/m): 0 where either level has as many liars as others."""
        return (1 - 2 * self.within / self.size) * (1 - 2 * self.across / self.groups)


def chance_of_loss(n: int, b: int, groups: int, within: int, across: int) -> float:
    """Bound the probability that more than F groups hold more than k Byzantine rows.

    Parameters
    ----------
    n, b : int
        Rows, and Byzantine ones among them.
    groups, within, across : int
        m, k and F.

    Examples
    --------
    >>> chance_of_loss(10_000, 1000, groups=156, within=13, across=10) < 1e-6
    True
    >>> chance_of_loss(100, 10, groups=4, within=5, across=1)
    0.0
    """
    if (within + 1) * (across + 1) > b:
        return 0.0
    p, a = beyond(n, b, -(-n // groups))[within], (across + 1) / groups
    if p == 0 or a <= p:
        return float(p > 0)
    apart = a * math.log(a / p)
    if a < 1:
        apart += (1 - a) * math.log((1 - a) / (1 - p))
    return math.exp(-groups * apart)


@lru_cache(maxsize=1024)
def levels(n: int, b: int, size: int | None, failure: float) -> Levels | None:
    """Divide the burden: k and F with the largest margin, both below one half.

    Parameters
    ----------
    n, b : int
        Rows, and Byzantine ones among them, fewer than half.
    size : int or None
        Least number of rows of a group. None: 64, doubled until the levels keep half of
        the margin 1 − 2b/n; in the end one group has all rows.
    failure : float
        Greatest `chance_of_loss` to accept.

    Returns
    -------
    Levels or None
        None if groups of this size leave no honest majority at one of the levels.

    Examples
    --------
    >>> levels(10_000, 1000, None, 1e-6)
    Levels(groups=156, size=64, within=13, across=8)
    >>> levels(17, 3, None, 1e-6)
    Levels(groups=1, size=17, within=3, across=0)
    """
    if size is None:
        return _doubled(n, b, failure)
    groups = max(1, n // size)
    if groups == 1:
        return Levels(1, n, b, 0)
    rows, minority = n // groups, range((groups + 1) // 2)
    found = []
    for k in range((rows + 1) // 2):
        few = bisect_left(
            minority,
            True,
            key=lambda f: chance_of_loss(n, b, groups, k, f) <= failure,
        )
        if few < len(minority):
            found.append(Levels(groups, rows, k, few))
    return max(found, key=lambda found: found.margin, default=None)


def _doubled(n: int, b: int, failure: float) -> Levels | None:
    size = _CHEAP
    while True:
        found = levels(n, b, size, failure)
        if found and found.margin >= _KEPT * (1 - 2 * b / n):
            return found
        size *= 2
