"""The geometric median, in the space of the clients."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.stack import Float64, squared_distances
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["GeometricMedian"]

_MAX_STEPS = 10_000


@dataclass(frozen=True)
class GeometricMedian(Aggregator):
    """Geometric median, the minimiser of Σ_i w_i ‖x_i − y‖.

    Weiszfeld's iteration y ← Σ (w_i / r_i) x_i / Σ (w_i / r_i), r_i = ‖x_i − y‖, never
    leaves the rows' affine hull, so it runs on coefficients and the Gram matrix. It
    starts at the best of the rows: that is the median if the pull of the others does
    not exceed its weight; otherwise the first step leaves it for good, downhill, and no
    later step can meet a row, where the iteration would break down. Where two rows are
    equally good, the middle ones of an even number on a line, every point between them
    is a median, and the midpoint is taken.

    Parameters
    ----------
    tolerance : float (default: 1e-6)
        Stop once the gradient Σ w_i (x_i − y) / r_i is shorter; Σ w_i is 1. It has no
        unit, and no row, however far, can make it look small or large.

    Raises
    ------
    ValueError
        If tolerance is not between 0 and 1.

    References
    ----------
    Vardi and Zhang, "The multivariate L1-median and associated data depth", PNAS 2000.
    Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning" (RFA),
    2022, stop after three smoothed steps; here the minimiser is reached.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    >>> GeometricMedian()(rows, f=1)
    array([0.5, 0.5])
    """

    weighted: ClassVar[bool] = True

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tolerance < 1:
            raise parameter_error("tolerance", "between 0 and 1", self.tolerance)

    def kappa(self, n: int, f: int) -> float | None:
        """4 (1 + f/(n − 2f))² (Allouah et al., AISTATS 2023, Table 1)."""
        return 4 * (1 + f / (n - 2 * f)) ** 2

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        gram = rows.centred_gram()
        return Combination(
            rows.to_stack_coefficients(_median(gram, budget.shares, self.tolerance))
        )


def _median(gram: Float64, weights: Float64, tolerance: float) -> Float64:
    """Coefficients of the geometric median of rows with this Gram matrix."""
    apart, counted = np.sqrt(squared_distances(gram)), weights > 0
    sums = np.where(counted, apart @ weights, np.inf)
    best = int(np.argmin(sums))
    tied = apart[best] * (sums <= sums[best] * (1 + 1e-12))
    if tied.any():
        y = np.zeros(len(weights))
        y[[best, int(np.argmax(tied))]] = 0.5
    else:
        y = _leave(best, gram, apart[best], weights)
    for _ in range(_MAX_STEPS):
        along = gram @ y
        r = np.sqrt(np.maximum(np.diag(gram) - 2 * along + y @ along, 0.0))
        if not r[counted].all():
            break
        pull = weights / np.where(counted, r, 1.0)
        step = pull / pull.sum() - y
        y = y + step
        # The gradient at the old y is the step times the sum of the pulls.
        if pull.sum() * np.sqrt(max(step @ gram @ step, 0.0)) <= tolerance:
            break
    return y


def _leave(best: int, gram: Float64, apart: Float64, weights: Float64) -> Float64:
    """Vardi and Zhang's step from a row: no step at all if the row is the median."""
    start = np.zeros(len(weights))
    start[best] = 1.0
    away = (apart > 0) & (weights > 0)
    if not away.any():
        return start
    pull = np.where(away, weights, 0.0) / np.where(away, apart, 1.0)
    target = pull / pull.sum() - start
    force = pull.sum() * np.sqrt(max(target @ gram @ target, 0.0))
    held = weights[~away].sum()
    return start if force <= held else start + (1 - held / force) * target
