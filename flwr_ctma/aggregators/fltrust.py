"""FLTrust: rows weighted by their agreement with the server's own update."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["FLTrust"]


@dataclass(frozen=True)
class FLTrust(Aggregator, name="fltrust"):
    """FLTrust: rows weighted by their cosine to the server's update, at its norm.

    With the server's own update g_0, given as `reference`, and trust
    t_i = max(0, cos(x_i, g_0)):

        FLTrust(x) = Σ_i w_i t_i (‖g_0‖/‖x_i‖) x_i / Σ_i w_i t_i

    If no row is trusted, the result is g_0. The weights w extend the paper, where all
    are equal.

    Raises
    ------
    ValueError
        If no reference is given.

    References
    ----------
    Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
    NDSS 2021, equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.array([[2.0, 0.0], [0.0, 5.0], [-9.0, 0.0]])
    >>> FLTrust()(rows, f=1, reference=np.array([1.0, 0.0]))
    array([1., 0.])
    """

    weighted: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        if rows.reference is None:
            raise parameter_error(
                "reference",
                "the server's own update for fltrust",
                None,
                "Train on a few trusted examples and pass the update.",
            )
        own = np.zeros((1, rows.stack.n))
        own[0, rows.reference] = 1.0
        mixing = np.eye(rows.stack.n) if rows.mixing is None else rows.mixing
        products = rows.stack.moments.inner(np.vstack([mixing, own]))
        norms = np.sqrt(np.maximum(np.diag(products), 0.0))
        lengths = np.where(norms[:-1] > 0, norms[:-1], 1.0)
        trust = budget.shares * np.maximum(products[-1, :-1], 0.0) / lengths
        if not trust.any():
            return Combination(own[0])
        scale = trust / trust.sum() * norms[-1] / lengths
        return Combination(rows.to_stack_coefficients(scale))
