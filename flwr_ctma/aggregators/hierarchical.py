"""Hierarchical aggregation: a rule within random groups, and one across them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Point
from flwr_ctma.aggregators.grouping import Levels, levels
from flwr_ctma.engine.stack import Float64, Stack, Vector
from flwr_ctma.engine.updates import Index, Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Hierarchical"]


@dataclass(frozen=True)
class Hierarchical(Aggregator, name="hierarchical"):
    """A rule within random groups, and a rule across the groups' results.

    Rows are dealt at random into m groups G_j of s rows or more:

        y_j = A(x_i : i in G_j),  f = k        A(x) = B(y_1, …, y_m),  f = F

    Of n rows f are Byzantine. k and F are such that more than F groups hold more than k
    of them with a probability of at most `failure` (see
    `flwr_ctma.aggregators.grouping`), with the widest margins to one half. Inner
    products are taken within groups and between the m results: n·s + m² in place of n²,
    with memory for m more rows.

    Parameters
    ----------
    within : Aggregator
        A.
    across : Aggregator, optional
        B; A if None.
    size : int, optional
        s. If None, 64, or more if groups so small would cost half of the margin
        1 − 2f/n. With fewer than 2s rows, the rule is A itself.
    failure : float (default: 1e-6)
        Greatest probability, in one call, that the f of either level does not hold. 0
        asks for groups that hold wherever the Byzantine rows are, which exist for
        f < n/4.
    seed : int, optional
        Of the groups. If None, every call draws new ones. The probability is that of a
        draw that the Byzantine clients do not know: keep a seed secret.

    Raises
    ------
    ValueError
        If rows have weights, because rows are drawn; or if groups of this size cannot
        tolerate f.

    Notes
    -----
    With a small probability the promise fails, which need not spoil the result: groups
    with more Byzantine rows than k, but fewer than half, often do well.

    References
    ----------
    Random groups as in bucketing (Karimireddy, He and Jaggi, ICLR 2022), with a robust
    rule in place of the mean.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import CTMA, CwMed
    >>> x = np.repeat([[1.0], [99.0]], [9, 2], axis=0)
    >>> Hierarchical(CTMA(CwMed()), size=3, seed=0)(x, f=2)
    array([1.])
    """

    in_groups: ClassVar[bool] = True

    within: Aggregator
    across: Aggregator | None = None
    size: int | None = None
    failure: float = 1e-6
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size < 1:
            raise parameter_error("size", "at least 1", self.size)
        if not 0 <= self.failure < 1:
            raise parameter_error("failure", "a probability below 1", self.failure)
        if self.seed is not None and self.seed < 0:
            raise parameter_error("seed", "at least 0", self.seed)

    def kappa(self, n: int, f: int) -> float | None:
        r"""(1 + κ_A)(1 + κ_B)(n − f)/((m − F)(s − k)), except on failure.

        Let S be the honest rows, μ their mean, H_j those of group j, and T groups that
        are not lost, m − F of them. Averaged over subsets of H_j of s_j − k rows, A's
        inequality is ‖y_j − mean_{H_j}‖² ≤ κ_A V(H_j), so that, with Cauchy and
        Schwarz, ‖y_j − μ‖² ≤ (1 + κ_A)(V(H_j) + ‖mean_{H_j} − μ‖²), which is
        (1 + κ_A)/|H_j| Σ_{H_j} ‖x_i − μ‖². Likewise ‖A(x) − μ‖² ≤ (1 + κ_B) mean_T
        ‖y_j − μ‖². H_j has s − k rows or more, and all H_j together n − f.
        """
        found = levels(n, f, self.size, self.failure) if 2 * f < n else None
        if found is None:
            return None
        inner = self.within.kappa(found.size, found.within)
        if found.groups == 1 or inner is None:
            return inner
        outer = self._across.kappa(found.groups, found.across)
        if outer is None:
            return None
        rows = (found.groups - found.across) * (found.size - found.within)
        return (1 + inner) * (1 + outer) * (n - f) / rows

    @property
    def _across(self) -> Aggregator:
        return self.within if self.across is None else self.across

    def _levels(self, n: int, f: int) -> Levels:
        found = levels(n, f, self.size, self.failure)
        if found is None:
            raise parameter_error(
                "size",
                f"so large that for n = {n} and f = {f} most groups have an honest "
                f"majority, except with probability {self.failure:g}",
                self.size,
                "Leave it out: the rule then chooses a sufficient size.",
            )
        return found

    def _check(self, budget: Budget, weighted: bool) -> None:
        found = self._levels(budget.n, budget.count)
        if found.groups == 1:
            self.within.check(budget.n, budget.f)
            return
        for size in {found.size, -(-budget.n // found.groups)}:
            self.within.check(size, found.within)
        self._across.check(found.groups, found.across)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        found = self._levels(budget.n, budget.count)
        if found.groups == 1:
            return self.within.solve(rows, budget)
        order = np.random.default_rng(self.seed).permutation(budget.n)
        groups = [np.sort(group) for group in np.array_split(order, found.groups)]
        points, vectors = [], []
        with _naming(rows):
            for group in groups:
                part, _ = rows.take(group)
                point = self.within.solve(part, Budget(part.n, found.within))
                points.append(point)
                vectors.append(point.vector(part.stack))
        results = rows.from_vectors(vectors)
        top = self._across.solve(results, Budget(results.n, found.across))
        return _Nested(rows, groups, points, results, top)


@dataclass(frozen=True, eq=False)
class _Nested(Point):
    """The result across groups of rows."""

    rows: Updates
    groups: Sequence[Index]
    points: Sequence[Point]
    results: Updates
    top: Point

    def vector(self, stack: Stack) -> Vector:
        """Return the result of the rule across."""
        return self.top.vector(self.results.stack)

    def squared_distances(self, rows: Updates) -> Float64:
        """Take a part of the rows at a time, so that only a part is copied."""
        vector, squared = self.vector(rows.stack), np.empty(rows.n)
        with _naming(rows):
            for some in np.array_split(np.arange(rows.n), len(self.groups)):
                part, _ = rows.take(some)
                squared[some] = part.stack.deviations(vector, part.mixing)
        return squared

    def influence(self, stack: Stack) -> Float64:
        """Return the influence of a row in its group times that of the group."""
        total = np.zeros(stack.n)
        shares = self.top.influence(self.results.stack)
        for share, group, point in zip(shares, self.groups, self.points, strict=False):
            part, kept = self.rows.take(group)
            total[kept] += share * point.influence(part.stack)
        if self.rows.reference is not None:
            total[self.rows.reference] += shares[-1]
        return total

    def weights(self) -> Float64 | None:
        """Return the influence if both rules weigh whole rows, else None."""
        if any(point.weights() is None for point in (*self.points, self.top)):
            return None
        return self.influence(self.rows.stack)


@contextmanager
def _naming(rows: Updates) -> Iterator[None]:
    """Let errors name rows that are not finite by their index among all rows."""
    try:
        yield
    except ValueError:
        rows.stack.check_finite()
        raise
