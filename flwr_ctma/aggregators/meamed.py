"""The mean around the coordinate-wise median."""

from dataclasses import dataclass

from flwr_ctma.aggregators.base import Aggregator, Budget, CoordinateWise
from flwr_ctma.aggregators.ctma import CTMA
from flwr_ctma.aggregators.cwmed import CwMed
from flwr_ctma.aggregators.ranks import NearestToMedian
from flwr_ctma.engine.updates import Updates

__all__ = ["MeaMed"]


@dataclass(frozen=True)
class MeaMed(Aggregator):
    """Mean around the median: in each coordinate, of the n − f values nearest to it.

    References
    ----------
    Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> MeaMed()(np.array([[1.0], [2.0], [4.0], [99.0]]), f=1)
    array([2.33333333])
    """

    def kappa(self, n: int, f: int) -> float | None:
        """κ of `CTMA(CwMed())`, which it is in each coordinate."""
        return CTMA(CwMed()).kappa(n, f)

    def _point(self, rows: Updates, budget: Budget) -> CoordinateWise:
        return CoordinateWise(NearestToMedian(budget.n - budget.count), rows)
