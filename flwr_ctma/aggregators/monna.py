"""MoNNA: the rows nearest to a trusted one."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["MoNNA"]


@dataclass(frozen=True)
class MoNNA(Aggregator):
    """MoNNA: the mean of the n − f rows nearest to a trusted row.

    Parameters
    ----------
    pivot : int (default: 0)
        Index of the trusted row. If its client is Byzantine, so is the result.

    Raises
    ------
    ValueError
        If there is no such row.

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

    pivot: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivot < 0:
            raise parameter_error("pivot", "at least 0", self.pivot)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        if self.pivot >= budget.n:
            raise parameter_error("pivot", f"smaller than n = {budget.n}", self.pivot)
        order = np.argsort(rows.squared_distances()[self.pivot], kind="stable")
        counted = budget.of(budget.n)
        return Combination(rows.to_stack_coefficients(counted.kept(order)))
