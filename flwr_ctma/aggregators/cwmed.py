"""The coordinate-wise median."""

from dataclasses import dataclass
from typing import Any, ClassVar

from flwr_ctma.aggregators.base import Aggregator, Budget, CoordinateWise
from flwr_ctma.aggregators.ranks import Ranks, WeightedMedian
from flwr_ctma.engine.updates import Updates

__all__ = ["CwMed"]


@dataclass(frozen=True)
class CwMed(Aggregator, name="cwmed"):
    """Coordinate-wise median: for even n, the mean of the two middle values.

    With weights, the value at which the cumulative weight passes one half, and the
    midpoint of two values between which it is exactly one half (ω-CwMed).

    References
    ----------
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", ICML 2018.

    Examples
    --------
    >>> import numpy as np
    >>> CwMed()(np.array([[1.0, 8.0], [2.0, -9.0], [99.0, 7.0]]), f=1)
    array([2., 7.])
    """

    weighted: ClassVar[bool] = True

    def kappa(self, n: int, f: int) -> float | None:
        """4 (1 + f/(n − 2f))² (Allouah et al., AISTATS 2023, Table 1)."""
        return 4 * (1 + f / (n - 2 * f)) ** 2

    def _point(self, rows: Updates, budget: Budget) -> CoordinateWise:
        if budget.weights is None:
            middle = {(budget.n - 1) // 2, budget.n // 2}
            kernel: Any = Ranks(tuple(float(r in middle) for r in range(budget.n)))
        else:
            kernel = WeightedMedian(budget.weights)
        return CoordinateWise(kernel, rows)
