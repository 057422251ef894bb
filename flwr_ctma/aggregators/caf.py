"""The covariance-bound agnostic filter."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates

__all__ = ["CAF"]


@dataclass(frozen=True)
class CAF(Aggregator):
    """Covariance-bound agnostic filter: rows that stretch the covariance count less.

    From c_i = 1, as long as Σ c > n − 2f: with μ = Σ c_i x_i / Σ c and (λ, v) the top
    eigenpair of Σ c_i (x_i − μ)(x_i − μ)ᵀ / Σ c, and τ_i = ⟨v, x_i − μ⟩²,

        c_i ← c_i (1 − τ_i / max_j τ_j)

    The result is the μ with the smallest λ on the way. All of it follows from the Gram
    matrix; ties of the two ends of v do not matter, since τ is squared.

    References
    ----------
    Allouah, Guerraoui and Stephan, "Towards Trustworthy Federated Learning with
    Untrusted Participants", ICML 2025, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> CAF()(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    array([2.00687383])
    """

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        gram, n = rows.centred_gram(), budget.n
        c, best, mean = np.ones(n), np.inf, np.full(n, 1 / n)
        while c.sum() > n - 2 * budget.count:
            p = c / c.sum()
            top, along = _top_direction(gram, p)
            if top < best:
                best, mean = top, p
            tau = along**2
            if not tau[c > 0].any():
                break
            c = c * (1 - np.minimum(tau / tau[c > 0].max(), 1.0))
        return Combination(rows.to_stack_coefficients(mean))


def _top_direction(gram: Float64, p: Float64) -> tuple[float, Float64]:
    """Largest variance of rows with weights p, and each row along its direction."""
    to_mean = np.eye(len(p)) - p
    centred = to_mean @ gram @ to_mean.T
    root = np.sqrt(p)
    values, vectors = np.linalg.eigh(root[:, None] * centred * root)
    top = max(float(values[-1]), 0.0)
    along: Float64 = centred @ (root * vectors[:, -1])
    return top, along / np.sqrt(top) if top > 0 else np.zeros(len(p))
