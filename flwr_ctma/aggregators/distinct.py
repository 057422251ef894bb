"""Distinct: colluders who send copies count once."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Budget, MetaAggregator, Point
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Distinct"]


@dataclass(frozen=True)
class Distinct(MetaAggregator, name="distinct"):
    """Rows that are nearly copies of each other count once, before the base rule.

    Many published attacks send f identical vectors; honest clients that train on data
    of their own do not. Rows that are pairwise nearer than t form a group, and the base
    sees the mean of each group: m rows in place of n. Of a group of s rows, s − 1 at
    least are Byzantine, so at most f − (n − m) groups are, and the base is told so.

    t is `nearer` times the smallest radius of a ball about a row that holds n − f rows,
    which Byzantine rows cannot make larger than the honest diameter. Zero rows are
    idle clients and are never grouped. If n − m > f, or a group has more than f rows,
    honest rows must be copies of each other, and the base sees all rows.

    It is a fence, not a wall: colluders that add noise of their own pass it. It relies
    on honest rows that differ: f honest rows or fewer that are copies of each other are
    taken for colluders, and then the base expects too few Byzantine rows. So no κ is
    known. Rows have no weights.

    Parameters
    ----------
    base : Aggregator
    nearer : float (default: 0.05)
        0 groups exact copies only.

    Raises
    ------
    ValueError
        If nearer is not in [0, 1), or the base is undefined for n − k rows and f − k,
        k = 0, …, f.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import Mean
    >>> x = np.array([[1.0], [2.0], [3.0], [-6.0], [-6.0]])
    >>> Distinct(Mean())(x, f=2)
    array([0.])
    """

    weighted: ClassVar[bool] = False

    nearer: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.nearer < 1:
            raise parameter_error("nearer", "at least 0 and below 1", self.nearer)

    def _check(self, budget: Budget, weighted: bool) -> None:
        for copies in range(budget.count + 1):
            self.base.check(budget.n - copies, budget.count - copies)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        n, f = budget.n, budget.count
        apart = np.sqrt(rows.squared_distances())
        radius = np.partition(apart, n - f - 1, axis=1)[:, n - f - 1].min()
        idle = np.diag(rows.gram()) == 0
        group = _groups((apart <= self.nearer * radius) & ~idle & ~idle[:, None])
        copies = n - (group.max() + 1)
        if not 0 < copies <= f or np.bincount(group).max() > f:
            return self.base.solve(rows, Budget(n, f))
        mixing: Float64 = (group == np.arange(n - copies)[:, None]).astype(np.float64)
        mixing /= mixing.sum(axis=1, keepdims=True)
        return self.base.solve(rows.mix(mixing), Budget(n - copies, f - copies))


def _groups(near: Any) -> Any:
    """Return the group of each row: the first one whose rows are all near, or its own.

    If chains of near rows made groups, Byzantine rows could join honest ones.
    """
    group, sizes = np.zeros(len(near), dtype=int), np.zeros(len(near), dtype=int)
    for row in range(len(near)):
        beside = np.bincount(group[:row][near[row, :row]], minlength=len(near))
        fitting = np.flatnonzero((beside == sizes) & (sizes > 0))
        group[row] = fitting[0] if fitting.size else np.count_nonzero(sizes)
        sizes[group[row]] += 1
    return group
