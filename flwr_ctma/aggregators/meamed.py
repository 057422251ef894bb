"""The mean around the coordinate-wise median."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, CoordinateWise
from flwr_ctma.aggregators.ctma import CTMA
from flwr_ctma.aggregators.cwmed import CwMed
from flwr_ctma.aggregators.ranks import NearestToMedian
from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.kernels import numpy as numpy_kernels
from flwr_ctma.engine.kernels.protocol import Primitives
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates

__all__ = ["MeaMed"]


@dataclass(frozen=True)
class MeaMed(Aggregator, name="meamed"):
    """Mean around the median: in each coordinate, of the n − f values nearest to it.

    With weights, or a share λ that is not a whole number of rows, the values nearest to
    the weighted median count up to the weight (1 − λ) Σ w, and the weight of the last
    value is split.

    References
    ----------
    Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> MeaMed()(np.array([[1.0], [2.0], [4.0], [99.0]]), f=1)
    array([2.33333333])
    """

    weighted: ClassVar[bool] = True

    def kappa(self, n: int, f: int) -> float | None:
        """κ of `CTMA(CwMed())`, which the rule is in each coordinate."""
        return CTMA(CwMed()).kappa(n, f)

    def _point(self, rows: Updates, budget: Budget) -> CoordinateWise:
        kept = budget.n * (1 - budget.share)
        if budget.weights is None and abs(kept - round(kept)) < 1e-9:
            return CoordinateWise(NearestToMedian(round(kept)), rows)
        return CoordinateWise(_WeightedNearest(budget), rows)


@dataclass(frozen=True, eq=False)
class _WeightedNearest:
    """Kernel: the mean of the values nearest to the weighted median."""

    budget: Budget

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the mean of each column."""
        values = block if isinstance(block, np.ndarray) else block.cpu().numpy()
        mean = (self.weights(values) * values).sum(axis=0)
        mean[~np.isfinite(values).all(axis=0)] = np.nan
        found = mean if isinstance(block, np.ndarray) else block.new_tensor(mean)
        if squares is not None:
            squares += primitives.squares_apart(block, found)
        return found

    def weights(self, block: Array) -> Float64:
        """Return the weight of each row in each column."""
        median = numpy_kernels.weighted_median(block, self.budget.shares)
        order = np.argsort(np.abs(block - median), axis=0, kind="stable")
        return np.ascontiguousarray(self.budget.kept(order.T).T)
