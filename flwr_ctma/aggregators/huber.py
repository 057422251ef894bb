"""The Huber aggregator: quadratic for near rows, linear for far ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.clipping import weighted_quantile
from flwr_ctma.aggregators.geometric_median import geometric_median
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Huber"]

_STEPS = 200
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Huber(Aggregator, name="huber"):
    """Huber aggregator: the minimiser of Σ_i w_i h(‖x_i − y‖); it needs no f.

    h(r) = r²/2 for r ≤ δ and δ r − δ²/2 beyond: the mean if all rows are within δ of
    it, and the geometric median as δ → 0. y ← Σ c_i x_i / Σ c_i, c_i = w_i min(1,
    δ/r_i), is repeated from the geometric median until a step is shorter than 1e-12 δ,
    at most 200 times. No κ is known for all δ; a Byzantine row pulls with the force w_i
    δ at most.

    Parameters
    ----------
    radius : float, optional
        δ, in the units of the updates. If None, the median distance of the rows to
        their geometric median.

    Raises
    ------
    ValueError
        If radius is not positive and finite.

    References
    ----------
    Zhao, Yu and Wan, "A Huber Loss Minimization Approach to Byzantine Robust Federated
    Learning", AAAI 2024.

    Examples
    --------
    >>> import numpy as np
    >>> Huber(radius=2.0)(np.array([[0.0], [1.0], [2.0], [99.0]]), f=1).round(9)
    array([1.66666667])
    """

    weighted: ClassVar[bool] = True

    radius: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise parameter_error("radius", "larger than 0 and finite", self.radius)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        gram, weights = rows.centred_gram(), budget.shares
        y = geometric_median(gram, weights, 1e-9)
        radius = self.radius
        for _ in range(_STEPS):
            along = gram @ y
            r = np.sqrt(np.maximum(np.diag(gram) - 2 * along + y @ along, 0.0))
            if radius is None:
                radius = weighted_quantile(r, weights, 0.5)
            if radius == 0:
                break
            pull = weights * np.where(r > radius, radius / np.maximum(r, radius), 1.0)
            step = pull / pull.sum() - y
            y = y + step
            if step @ gram @ step <= (_TOLERANCE * radius) ** 2:
                break
        return Combination(rows.to_stack_coefficients(y))
