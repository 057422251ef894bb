"""Bulyan: Krum chooses rows, a trimmed mean around their median combines them."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, CoordinateWise
from flwr_ctma.aggregators.krum import krum_scores
from flwr_ctma.aggregators.ranks import NearestToMedian
from flwr_ctma.engine.updates import Updates

__all__ = ["Bulyan"]


@dataclass(frozen=True)
class Bulyan(Aggregator, name="bulyan"):
    """Bulyan: n − 2f rows chosen one by one by Krum, then a mean around their median.

    In each coordinate, the mean of the n − 4f chosen values nearest to their median.
    Needs n ≥ 4f + 3. Rows have no weights, for the reason that `Krum` states. No κ is
    known: a row that is chosen late has few neighbours to be near to.

    Raises
    ------
    ValueError
        If n < 4f + 3.

    References
    ----------
    El Mhamdi, Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning
    in Byzantium", ICML 2018, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> Bulyan()(np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [99.0]]), f=1)
    array([2.])
    """

    def min_rows(self, f: int) -> int:
        """4f + 3."""
        return 4 * f + 3

    def _point(self, rows: Updates, budget: Budget) -> CoordinateWise:
        n, f = budget.n, budget.count
        apart = rows.squared_distances()
        left = list(range(n))
        chosen: list[int] = []
        while len(chosen) < n - 2 * f:
            neighbours = max(1, len(left) - f - 2)
            scores = krum_scores(apart[np.ix_(left, left)], neighbours)
            chosen.append(left.pop(int(np.argmin(scores))))
        return CoordinateWise(NearestToMedian(n - 4 * f), rows.mix(np.eye(n)[chosen]))
