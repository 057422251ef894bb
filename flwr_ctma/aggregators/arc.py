"""Adaptive robust clipping."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Budget, MetaAggregator, Point
from flwr_ctma.aggregators.clipping import clipped, norms
from flwr_ctma.engine.updates import Updates

__all__ = ["ARC"]


@dataclass(frozen=True)
class ARC(MetaAggregator, name="arc"):
    """Adaptive robust clipping: the k largest norms are cut to the next largest.

    k = ⌊2 (f/n) (n − f)⌋. The base rule sees the clipped rows. With weights, the limit
    is the largest norm that the longest rows, up to the weight 2 λ (1 − λ) Σ w, do not
    cover. No κ is known.

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

    def _point(self, rows: Updates, budget: Budget) -> Point:
        lengths = norms(rows)
        order = np.argsort(-lengths, kind="stable")
        covered = np.cumsum(budget.shares[order])
        cut = 2 * budget.share * (1 - budget.share)
        limit = lengths[order[np.argmax(covered > cut + 1e-12)]]
        return self.base.solve(clipped(rows, limit), budget)
