"""Zeno: rows that raise the loss on the server's data are dropped."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Budget, MetaAggregator, Point
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Zeno"]


@dataclass(frozen=True)
class Zeno(MetaAggregator, name="zeno"):
    """Zeno: at most f rows that raise the loss on the server's data are dropped.

    The server's own update g_0, given as `reference`, is a descent of that loss. To
    first order a row x_i changes the loss by −⟨g_0, x_i⟩, up to a positive factor. Of
    the rows with ⟨g_0, x_i⟩ < 0 the f lowest are dropped, and the base sees the others.
    It is told f, or as much as these allow.

    The papers evaluate the loss at each row (Zeno) or its first order as here
    (Zeno++), subtract ρ‖x_i‖², and average the rows that are left. No κ is known: a
    row that lowers the loss by a little is kept, wherever else it points. Rows have no
    weights.

    Parameters
    ----------
    base : Aggregator

    Raises
    ------
    ValueError
        If no reference is given, or the base is undefined for n − k rows, k = 0, …, f.

    References
    ----------
    Xie, Koyejo and Gupta, "Zeno: Distributed Stochastic Gradient Descent with
    Suspicion-based Fault-tolerance", ICML 2019, Algorithm 1; "Zeno++: Robust Fully
    Asynchronous SGD", ICML 2020, Definition 2.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import Mean
    >>> x = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, -1.0], [-9.0, 0.0]])
    >>> Zeno(Mean())(x, f=1, reference=np.array([1.0, 0.0]))
    array([2., 0.])
    """

    weighted: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True

    def _check(self, budget: Budget, weighted: bool) -> None:
        self.base.check(budget.n, budget.f)
        for dropped in range(1, budget.count + 1):
            left = budget.n - dropped
            self.base.check(left, self._tolerated(left, budget.count))

    def _point(self, rows: Updates, budget: Budget) -> Point:
        if rows.reference is None:
            raise parameter_error(
                "reference",
                "the server's own update for zeno",
                None,
                "Train on a few trusted examples and pass the update.",
            )
        n, f = budget.n, budget.count
        own = np.zeros((1, rows.stack.n))
        own[0, rows.reference] = 1.0
        mixing = np.eye(rows.stack.n) if rows.mixing is None else rows.mixing
        scores = rows.stack.moments.inner(np.vstack([mixing, own]))[-1, :-1]
        lowest = np.argsort(scores, kind="stable")[:f]
        kept = np.delete(np.arange(n), lowest[scores[lowest] < 0])
        left = len(kept)
        if left == n:
            return self.base.solve(rows, budget)
        return self.base.solve(
            rows.mix(np.eye(n)[kept]), Budget(left, self._tolerated(left, f))
        )

    def _tolerated(self, n: int, f: int) -> int:
        """Return the largest count up to f for which the base is defined."""
        return max(
            (g for g in range(f + 1) if self.base.min_rows(g) <= n and 2 * g < n),
            default=0,
        )
