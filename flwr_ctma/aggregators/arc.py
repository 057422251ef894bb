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
    cover.

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

    def kappa(self, n: int, f: int) -> float | None:
        """(√κ + √(k/(n − f − k)))², κ that of the base rule, k as above.

        Cut rows are no farther apart, so the base rule errs by at most √κ standard
        deviations of S. If m ≤ k rows of S are cut by δ_i, then mean_S moves by at most
        Σ δ_i/(n − f). Such a row is δ_i or more from each of the n − f − m others, so
        the variance of S is at least (n − f − m) Σ δ_i²/(n − f)².
        """
        base = self.base.kappa(n, f)
        if base is None:
            return None
        k = 2 * f * (n - f) // n
        return float((base**0.5 + (k / (n - f - k)) ** 0.5) ** 2)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        lengths = norms(rows)
        order = np.argsort(-lengths, kind="stable")
        covered = np.cumsum(budget.shares[order])
        cut = 2 * budget.share * (1 - budget.share)
        limit = lengths[order[np.argmax(covered > cut + 1e-12)]]
        return self.base.solve(clipped(rows, limit), budget)
