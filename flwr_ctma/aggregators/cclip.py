"""Centered clipping."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["CenteredClipping"]


@dataclass(frozen=True)
class CenteredClipping(Aggregator, name="cclip"):
    """Centered clipping: v ← v + Σ_i w_i (x_i − v) min(1, τ/‖x_i − v‖), repeated.

    v starts at `reference`, the previous output, or at zero. No κ holds for a fixed
    radius: identical rows farther than steps · τ from the start are not reached.

    Parameters
    ----------
    radius : float (default: 10.0)
        τ, in the units of the updates.
    steps : int (default: 1)

    Raises
    ------
    ValueError
        If radius or steps is out of range.

    References
    ----------
    Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust
    Optimization", ICML 2021, equation (CC).

    Examples
    --------
    >>> import numpy as np
    >>> CenteredClipping(radius=3.0)(np.array([[1.0], [2.0], [99.0]]), f=1)
    array([2.])
    """

    weighted: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    radius: float = 10.0
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.radius < math.inf:
            raise parameter_error("radius", "larger than 0 and finite", self.radius)
        if self.steps < 1:
            raise parameter_error("steps", "at least 1", self.steps)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        start = np.zeros(rows.stack.n)
        if rows.reference is not None:
            start[rows.reference] = 1.0
        v = Combination(start)
        for _ in range(self.steps):
            distances = np.sqrt(v.squared_distances(rows))
            near = distances <= self.radius
            pull = budget.shares * np.where(
                near, 1.0, self.radius / np.where(near, 1.0, distances)
            )
            v = Combination(
                (1 - pull.sum()) * v.coefficients + rows.to_stack_coefficients(pull)
            )
        return v
