"""The weighted mean, as FedAvg computes it: one client can move it anywhere."""

import math
from dataclasses import dataclass
from typing import ClassVar

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates

__all__ = ["Mean"]


@dataclass(frozen=True)
class Mean(Aggregator, name="mean"):
    """Weighted mean Σ w_i x_i / Σ w_i; not robust.

    Examples
    --------
    >>> import numpy as np
    >>> Mean()(np.array([[1.0], [2.0], [6.0]]), f=0)
    array([3.])
    """

    weighted: ClassVar[bool] = True

    def kappa(self, n: int, f: int) -> float | None:
        """0 without Byzantine rows, infinite with one."""
        return 0.0 if f == 0 else math.inf

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        return Combination(rows.to_stack_coefficients(budget.shares))
