"""Adaptive robust clipping."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Point
from flwr_ctma.engine.updates import Updates

__all__ = ["ARC"]


@dataclass(frozen=True)
class ARC(Aggregator):
    """Adaptive robust clipping: the k largest norms are cut to the next largest.

    k = ⌊2 (f/n) (n − f)⌋; then the base rule.

    Parameters
    ----------
    base : Aggregator

    References
    ----------
    Allouah et al., "Adaptive Gradient Clipping for Robust Federated Learning", ICLR
    2025, Algorithm 2 (arXiv 2405.14432).

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import Mean
    >>> ARC(Mean())(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    array([2.25])
    """

    base: Aggregator

    def _point(self, rows: Updates, budget: Budget) -> Point:
        n, f = budget.n, budget.count
        norms = np.sqrt(np.maximum(np.diag(rows.gram()), 0.0))
        clipped = 2 * f * (n - f) // n
        limit = np.sort(norms)[::-1][clipped]
        long = norms > limit
        scale = np.where(long, limit, 1.0) / np.where(long, norms, 1.0)
        return self.base.solve(rows.mix(np.diag(scale)), budget)
