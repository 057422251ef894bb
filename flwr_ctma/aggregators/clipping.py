"""Clipping: rows are scaled down to a norm before another rule sees them."""

import math
from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Budget, MetaAggregator, Point
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Clipping", "NormBound", "clipped", "norms", "weighted_quantile"]


@dataclass(frozen=True)
class Clipping(MetaAggregator, name="clipping"):
    """Static clipping: x_i ← x_i min(1, τ/‖x_i‖), then the base rule.

    Parameters
    ----------
    base : Aggregator
    radius : float
        τ, in the units of the updates.

    Raises
    ------
    ValueError
        If radius is not positive and finite.

    References
    ----------
    Sun et al., "Can You Really Backdoor Federated Learning?", 2019, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import Mean
    >>> Clipping(Mean(), radius=2.0)(np.array([[1.0], [2.0], [-99.0]]), f=1)
    array([0.33333333])
    """

    radius: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.radius < math.inf:
            raise parameter_error("radius", "larger than 0 and finite", self.radius)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        return self.base.solve(clipped(rows, self.radius), budget)


@dataclass(frozen=True)
class NormBound(MetaAggregator, name="normbound"):
    """Clipping to a quantile of the norms, then the base rule.

    The radius is the smallest norm that rows of the share q of the weight do not
    exceed: for the default, the (lower) median norm, as in FLAME. Fewer than (1 − q) n
    Byzantine rows cannot raise it above the largest honest norm.

    Parameters
    ----------
    base : Aggregator
    quantile : float (default: 0.5)
        q.

    Raises
    ------
    ValueError
        If quantile is not between 0 and 1.

    References
    ----------
    Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security
    2022, section 4.3, with the median.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import Mean
    >>> NormBound(Mean())(np.array([[1.0], [2.0], [-99.0]]), f=1)
    array([0.33333333])
    """

    quantile: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.quantile <= 1:
            raise parameter_error(
                "quantile", "larger than 0 and at most 1", self.quantile
            )

    def _point(self, rows: Updates, budget: Budget) -> Point:
        radius = weighted_quantile(norms(rows), budget.shares, self.quantile)
        return self.base.solve(clipped(rows, radius), budget)


def norms(rows: Updates) -> Float64:
    """Return ‖x_i‖ of all rows, (n,)."""
    lengths: Float64 = np.sqrt(np.maximum(np.diag(rows.gram()), 0.0))
    return lengths


def clipped(rows: Updates, radius: float) -> Updates:
    """Return the rows scaled down to a norm of at most the radius."""
    lengths = norms(rows)
    long = lengths > radius
    scale = np.where(long, radius, 1.0) / np.where(long, lengths, 1.0)
    return rows.mix(np.diag(scale))


def weighted_quantile(values: Float64, shares: Float64, quantile: float) -> float:
    """Return the smallest value up to which the shares sum to the quantile."""
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(shares[order])
    return float(values[order[np.argmax(upto >= quantile - 1e-12)]])
