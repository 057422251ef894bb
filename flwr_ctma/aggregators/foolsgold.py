"""FoolsGold: rows count less the more they point where another row points."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.clipping import norms
from flwr_ctma.engine.updates import Updates

__all__ = ["FoolsGold"]


@dataclass(frozen=True)
class FoolsGold(Aggregator, name="foolsgold"):
    """FoolsGold: rows weighted by how little they resemble any other row; needs no f.

    With s_ij = cos(x_i, x_j), i ≠ j, and v_i = max_j s_ij, each s_ij is multiplied by
    v_i/v_j where v_j > v_i, so that honest rows are pardoned. Then

        α_i = 1 − max_j s_ij, in [0, 1], divided by the largest and at most 0.99
        α_i ← ln(α_i/(1 − α_i)) + 1/2, in [0, 1]
        FoolsGold(x) = Σ α_i x_i / Σ α_i

    and 0 if no row counts. The paper takes the cosines of all that a client has sent so
    far: pass such sums to `weigh` and apply the result to the present rows.

    It is made for Sybils in large numbers whose honest opponents differ much, and is
    not robust: a single row that is unlike all others counts most. So it has no κ, and
    no weights. Where honest rows are alike, as with i.i.d. data, they count least.

    References
    ----------
    Fung, Yoon and Beschastnikh, "The Limitations of Federated Learning in Sybil
    Settings", RAID 2020, Algorithm 1, without the importance of features and κ = 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-5.0, -5.0], [-5.0, -5.0]])
    >>> FoolsGold()(x, f=1)
    array([0.5, 0.5])
    """

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        lengths = norms(rows)
        lengths[lengths == 0] = 1.0
        cosines = rows.gram() / np.outer(lengths, lengths)
        np.fill_diagonal(cosines, -1.0)
        most = np.maximum(cosines.max(axis=1), 0.0)
        pardoned = most[None, :] > most[:, None]
        cosines *= np.where(pardoned, most[:, None], 1.0)
        cosines /= np.where(pardoned, most[None, :], 1.0)
        np.fill_diagonal(cosines, -1.0)
        alpha = np.clip(1 - cosines.max(axis=1), 0.0, 1.0)
        # Cosines of rows that point the same way are 1 only up to rounding.
        alpha[alpha < 1e-12] = 0.0
        if alpha.any():
            alpha = np.minimum(alpha / alpha.max(), 0.99)
            with np.errstate(divide="ignore"):
                alpha = np.clip(np.log(alpha / (1 - alpha)) + 0.5, 0.0, 1.0)
            alpha /= alpha.sum()
        return Combination(rows.to_stack_coefficients(alpha))
