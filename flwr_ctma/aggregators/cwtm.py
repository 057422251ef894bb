"""The coordinate-wise trimmed mean."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, CoordinateWise
from flwr_ctma.aggregators.ranks import Ranks, WeightedRanks
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates

__all__ = ["CwTM"]


@dataclass(frozen=True)
class CwTM(Aggregator, name="cwtm"):
    """Coordinate-wise trimmed mean: drop the f smallest and the f largest values.

    With a share λ, or with weights, the weight λ Σ w is trimmed from each end, and the
    weight of the value on the boundary is split.

    References
    ----------
    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", ICML 2018.

    Examples
    --------
    >>> import numpy as np
    >>> CwTM()(np.array([[1.0], [2.0], [4.0], [99.0]]), f=1)
    array([3.])
    """

    weighted: ClassVar[bool] = True

    def kappa(self, n: int, f: int) -> float | None:
        """6f/(n − 2f) · (1 + f/(n − 2f)) (Allouah et al., AISTATS 2023, Table 1)."""
        share = f / (n - 2 * f)
        return 6 * share * (1 + share)

    def _point(self, rows: Updates, budget: Budget) -> CoordinateWise:
        if budget.weights is None:
            whole = isinstance(budget.f, int | np.integer)
            cut = float(budget.f) if whole else budget.f * budget.n
            kept = _between(np.ones((budget.n, 1)), cut)[:, 0]
            kernel: Any = Ranks(tuple(kept.tolist()))
        else:
            cut = budget.share * budget.weights.sum()
            kernel = WeightedRanks(budget.weights, lambda w: _between(w, cut))
        return CoordinateWise(kernel, rows)


def _between(weights: Float64, cut: float) -> Float64:
    """Return what is left of the weights of sorted values, cut at both ends."""
    upto = np.cumsum(weights, axis=0)
    total = upto[-1]
    # Some of the middle is left, however near to one half the share is.
    cut = np.minimum(cut, (0.5 - 1e-9) * total)
    kept = np.minimum(upto, total - cut) - np.maximum(upto - weights, cut)
    # A rest that is due to rounding counts as nothing.
    return np.where(kept > 1e-12 * total, kept, 0.0)
