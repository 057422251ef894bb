"""Nearest-neighbour mixing."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Point
from flwr_ctma.engine.updates import Updates

__all__ = ["NNM"]


@dataclass(frozen=True)
class NNM(Aggregator):
    """Nearest-neighbour mixing: every row becomes the mean of its n − f nearest rows.

    A row is its own nearest. The base rule then sees the mixed rows.

    Parameters
    ----------
    base : Aggregator

    References
    ----------
    Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity", AISTATS 2023, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import CwMed
    >>> NNM(CwMed())(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    array([2.])
    """

    base: Aggregator

    def kappa(self, n: int, f: int) -> float | None:
        """8f/(n − f) · (κ + 1) with κ of the base (AISTATS 2023, Lemma 1)."""
        base = self.base.kappa(n, f)
        return None if base is None else 8 * f / (n - f) * (base + 1)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        kept = budget.n - budget.count
        order = np.argsort(rows.squared_distances(), axis=1, kind="stable")
        mixing = np.zeros((budget.n, budget.n))
        np.put_along_axis(mixing, order[:, :kept], 1 / kept, axis=1)
        return self.base.solve(rows.mix(mixing), budget)
