"""Minimum-diameter averaging, by search for a clique instead of over all subsets."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["MDA"]

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class MDA(Aggregator):
    """Minimum-diameter averaging: the mean of the n − f rows of smallest diameter.

    n − f rows have a diameter of at most t if f rows cover every pair that is farther
    apart than t. The smallest such t is found by bisection over the distances, and the
    cover for each t by branching on the row in most pairs: either it is one of the f,
    or all its partners are. That is exact, and takes at most 1.62^f steps a distance
    where the number of subsets is C(n, f): some 20 steps in all instead of 24 310
    subsets for 8 of 17. Of subsets with the same diameter the first found is taken.

    Parameters
    ----------
    limit : int (default: 1000000)
        Largest number of steps, beyond which the search raises a ValueError.

    Raises
    ------
    ValueError
        If limit is below 1, or too low for the rows.

    References
    ----------
    Rousseeuw, "Multivariate estimation with high breakdown point", 1985; El Mhamdi et
    al., "Fast and Robust Distributed Learning in High Dimension", 2019. It is (f, λ)-
    resilient with λ = 2f/(n − f): Farhadkhani et al., ICML 2022 (RESAM), Proposition 2.

    Examples
    --------
    >>> import numpy as np
    >>> MDA()(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    array([2.])
    """

    limit: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit < 1:
            raise parameter_error("limit", "at least 1", self.limit)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        apart = rows.squared_distances()
        levels = np.unique(apart)
        search = _Search(budget, self.limit)
        low, high, dropped = 0, len(levels) - 1, np.zeros(budget.n, dtype=bool)
        while low < high:
            middle = (low + high) // 2
            cover = search.cover(apart > levels[middle], budget.count)
            if cover is None:
                low = middle + 1
            else:
                high, dropped = middle, cover
        # A cover smaller than f leaves rows to choose from: those nearest the rest.
        kept = np.flatnonzero(~dropped)
        spread = apart[np.ix_(kept, kept)].sum(axis=1)
        kept = kept[np.argsort(spread, kind="stable")[: budget.n - budget.count]]
        coefficients = np.zeros(budget.n)
        coefficients[kept] = 1 / len(kept)
        return Combination(rows.to_stack_coefficients(coefficients))


class _Search:
    """Vertex covers of bounded size, with a bound on all the steps taken."""

    def __init__(self, budget: Budget, limit: int) -> None:
        self.budget, self.limit, self.steps = budget, limit, 0

    def cover(self, graph: Mask, size: int) -> Mask | None:
        """Find at most `size` vertices that meet every edge, or None."""
        edges, everyone = graph.astype(np.float32), np.arange(len(graph))
        waiting = [np.zeros(len(graph), dtype=bool)]
        while waiting:
            self._count_step()
            taken = waiting.pop()
            room = size - taken.sum()
            degrees = np.where(taken, 0, edges @ ~taken)
            most = np.argmax(degrees)
            if degrees[most] == 0:
                return taken
            # Each of the vertices to come meets at most degrees[most] edges.
            if degrees.sum() > 2 * room * degrees[most]:
                continue
            # Who has more partners than there is room for is in every cover.
            forced = degrees > room
            choices = [forced] if forced.any() else [graph[most], everyone == most]
            covers = [taken | choice for choice in choices]
            waiting += [cover for cover in covers if cover.sum() <= size]
        return None

    def _count_step(self) -> None:
        self.steps += 1
        if self.steps > self.limit:
            raise parameter_error(
                "f",
                f"such that mda needs at most {self.limit} steps",
                self.budget.count,
                "Raise `limit`, or use ctma(gm).",
            )
