"""Minimum-diameter averaging, by search for a clique instead of over all subsets."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.errors import wrong
from flwr_ctma.updates import Updates

__all__ = ["MDA"]

Graph = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class MDA(Aggregator):
    """Minimum-diameter averaging: the mean of the n − f rows of smallest diameter.

    n − f rows have a diameter of at most t if f rows cover every pair that is farther
    apart than t. The smallest such t is found by bisection over the distances, and the
    cover for each t by branching on the row in most pairs: either it is one of the f,
    or all its partners are. That is exact, and takes at most 1.62^f steps a distance
    where the number of subsets is C(n, f): about 80 steps in all instead of 24 310
    subsets for 8 of 17. Of subsets with the same diameter the first found is taken.

    Parameters
    ----------
    limit : int (default: 1000000)
        Largest number of steps, beyond which the search raises a ValueError.

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
            raise wrong("limit", "at least 1", self.limit)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        apart = rows.squared_distances()
        apart = np.maximum(apart, apart.T)  # rounding may tell i–j from j–i
        levels = np.unique(apart)
        search = _Search(budget, self.limit)
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            if search.cover(apart > levels[middle], budget.count) is None:
                low = middle + 1
            else:
                high = middle
        dropped = search.cover(apart > levels[low], budget.count) or frozenset()
        # A cover smaller than f leaves rows to choose from: those nearest the rest.
        kept = np.array(sorted(set(range(budget.n)) - dropped))
        spread = apart[np.ix_(kept, kept)].sum(axis=1)
        kept = kept[np.argsort(spread, kind="stable")[: budget.n - budget.count]]
        coefficients = np.zeros(budget.n)
        coefficients[kept] = 1 / len(kept)
        return Combination(rows.expand(coefficients))


class _Search:
    """Vertex covers of bounded size, with a bound on all the steps taken."""

    def __init__(self, budget: Budget, limit: int) -> None:
        self.budget, self.limit, self.steps = budget, limit, 0

    def cover(self, graph: Graph, size: int) -> frozenset[int] | None:
        """Find at most `size` vertices that meet every edge, or None."""
        self.steps += 1
        if self.steps > self.limit:
            raise wrong(
                "f",
                f"such that mda needs at most {self.limit} steps",
                self.budget.count,
                "Raise `limit`, or use ctma(gm).",
            )
        degrees = graph.sum(axis=0)
        most = int(np.argmax(degrees))
        if degrees[most] == 0:
            return frozenset()
        # Each of `size` vertices meets at most degrees[most] edges.
        if degrees.sum() > 2 * size * degrees[most]:
            return None
        partners = np.flatnonzero(graph[most])
        for taken in ([most], partners):
            if len(taken) <= size:
                found = self.cover(_without(graph, taken), size - len(taken))
                if found is not None:
                    return found | {int(vertex) for vertex in taken}
        return None


def _without(graph: Graph, vertices: Any) -> Graph:
    rest = graph.copy()
    rest[vertices] = False
    rest[:, vertices] = False
    return rest
