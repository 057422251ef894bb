"""Comparative gradient elimination."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates

__all__ = ["CGE"]


@dataclass(frozen=True)
class CGE(Aggregator, name="cge"):
    """Comparative gradient elimination: the mean of the n − f rows of smallest norm.

    With weights, rows count in the order of their norm up to the weight (1 − λ) Σ w.
    Rows must be updates, not models. The rule is not robust: f short rows that all
    point the wrong way are kept, so it has no κ.

    References
    ----------
    Gupta, Liu and Vaidya, "Byzantine Fault-Tolerant Distributed Machine Learning using
    D-SGD and Norm-Based Comparative Gradient Elimination", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> CGE()(np.array([[1.0], [-2.0], [3.0], [99.0]]), f=1)
    array([0.66666667])
    """

    weighted: ClassVar[bool] = True

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        order = np.argsort(np.diag(rows.gram()), kind="stable")
        return Combination(rows.to_stack_coefficients(budget.kept(order)))
