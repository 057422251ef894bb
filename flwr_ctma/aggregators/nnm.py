"""Nearest-neighbour mixing."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Budget, MetaAggregator, Point
from flwr_ctma.engine.updates import Updates

__all__ = ["NNM"]


@dataclass(frozen=True)
class NNM(MetaAggregator, name="nnm"):
    """Nearest-neighbour mixing: each row becomes the mean of its n − f nearest rows.

    A row is its own nearest. The base rule sees the mixed rows. With weights, or a
    share λ, each mean takes the nearest rows up to the weight (1 − λ) Σ w and splits
    the weight of the last one; the base sees the mixed rows with the weights of the
    raw ones.

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

    def kappa(self, n: int, f: int) -> float | None:
        """8f/(n − f) · (κ + 1) with κ of the base (AISTATS 2023, Lemma 1)."""
        base = self.base.kappa(n, f)
        return None if base is None else 8 * f / (n - f) * (base + 1)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        order = np.argsort(rows.squared_distances(), axis=1, kind="stable")
        return self.base.solve(rows.mix(budget.kept(order)), budget)
