"""A rule in each layer of the model on its own."""

from dataclasses import dataclass
from typing import ClassVar

from flwr_ctma.aggregators.base import Budget, MetaAggregator, Point
from flwr_ctma.aggregators.points import concatenated
from flwr_ctma.engine.updates import Updates

__all__ = ["Layerwise"]


@dataclass(frozen=True)
class Layerwise(MetaAggregator, name="layerwise"):
    """The base rule in each layer on its own; layers are the arrays of the model.

    A client may count in one layer and not in another, so the rule gives clients no
    weights that hold in all coordinates. A matrix or a tensor is one layer, in which
    the result is that of the base. With the backend "ray", layers are aggregated in
    this process.

    Parameters
    ----------
    base : Aggregator

    Notes
    -----
    Attacks that search against the rule in use see the model as one layer.

    References
    ----------
    García-Márquez, Rodríguez-Barroso, Luzón and Herrera, "Improving (α, f)-Byzantine
    Resilience in Federated Learning via Layerwise Aggregation and Cosine Distance",
    2025, with the distances of the base.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import Krum
    >>> from flwr_ctma.engine.updates import Layer, Updates
    >>> first = np.array([[1.0], [1.1], [1.3], [99.0], [1.2]])
    >>> second = np.array([[99.0], [7.0], [7.0], [7.0], [7.0]])
    >>> Layerwise(Krum())(Updates.of([Layer(first), Layer(second)]), f=1)
    [array([1.1]), array([7.])]
    """

    by_layer: ClassVar[bool] = True

    def kappa(self, n: int, f: int) -> float | None:
        """κ of the base: errors and variances of layers add up, for the same S."""
        return self.base.kappa(n, f)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        layers = rows.split()
        return concatenated(layers, [self.base.solve(one, budget) for one in layers])
