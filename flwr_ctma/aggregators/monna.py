"""MoNNA: the rows nearest to a trusted one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["MoNNA"]


@dataclass(frozen=True)
class MoNNA(Aggregator, name="monna"):
    """MoNNA: the mean of the n − f rows nearest to a trusted row.

    With weights, the nearest rows count up to the weight (1 − λ) Σ w. The trusted row
    is one of the rows, or a `reference`, such as the server's own update, which then
    replaces the pivot and does not count itself.

    Parameters
    ----------
    pivot : int (default: 0)
        Index of the trusted row where no reference is given. If its client is
        Byzantine, the result is too.

    Raises
    ------
    ValueError
        If the pivot is negative, or not smaller than n.

    References
    ----------
    Farhadkhani et al., "Robust Collaborative Learning with Linear Gradient Overhead",
    ICML 2023.

    Examples
    --------
    >>> import numpy as np
    >>> MoNNA(pivot=1)(np.array([[1.0], [2.0], [4.0], [99.0]]), f=1)
    array([2.33333333])
    """

    weighted: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    pivot: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivot < 0:
            raise parameter_error("pivot", "at least 0", self.pivot)

    def _check(self, budget: Budget, weighted: bool) -> None:
        if self.pivot >= budget.n:
            raise parameter_error("pivot", f"smaller than n = {budget.n}", self.pivot)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        squared = (
            rows.squared_distances()[self.pivot]
            if rows.reference is None
            else _reference(rows).squared_distances(rows)
        )
        order = np.argsort(squared, kind="stable")
        return Combination(rows.to_stack_coefficients(budget.kept(order)))


def _reference(rows: Updates) -> Combination:
    return Combination((np.arange(rows.stack.n) == rows.reference).astype(np.float64))
