"""The covariance-bound agnostic filter."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.spectral import top_eigenpair
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates

__all__ = ["CAF"]


@dataclass(frozen=True)
class CAF(Aggregator, name="caf"):
    """Covariance-bound agnostic filter: rows that stretch the covariance count less.

    From c_i = w_i (1 without weights), as long as Σ c > (1 − 2λ) Σ w: with
    μ = Σ c_i x_i / Σ c and (σ, v) the top eigenpair of Σ c_i (x_i − μ)(x_i − μ)ᵀ / Σ c,
    and τ_i = ⟨v, x_i − μ⟩²,

        c_i ← c_i (1 − τ_i / max_j τ_j)

    The result is the μ with the smallest σ on the way. Everything follows from the Gram
    matrix. Each round drops a row at least, so there are at most n rounds; each takes
    at most 96 products with an (n, n) matrix, and the matrix shrinks as rows drop out.

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

    weighted: ClassVar[bool] = True

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        gram, c = rows.centred_gram(), budget.shares
        least, best, mean = 1 - 2 * budget.share, np.inf, c
        left, along = np.arange(budget.n), np.zeros(budget.n)
        while c.sum() > least + 1e-12:
            if not c[left].all():
                kept = c[left] > 0
                left, along = left[kept], along[kept]
                gram = gram[np.ix_(kept, kept)]
            p = c[left] / c.sum()
            top, along = _top_direction(gram, p, along)
            if top < best:
                best, mean = top, c / c.sum()
            tau = along**2
            if not tau.any():
                break
            c = c.copy()
            c[left] *= 1 - tau / tau.max()
        return Combination(rows.to_stack_coefficients(mean))


def _top_direction(gram: Float64, p: Float64, along: Float64) -> tuple[float, Float64]:
    """Return the largest variance of rows with weights p, and rows along its direction.

    The rows along the direction of a similar call are the guess.
    """
    to_mean = gram @ p
    centred = gram - to_mean[:, None] - to_mean + p @ to_mean
    root = np.sqrt(p)
    top, vector = top_eigenpair(root[:, None] * centred * root, root * along)
    top = max(top, 0.0)
    along = centred @ (root * vector)
    return top, along / np.sqrt(top) if top > 0 else np.zeros(len(p))
