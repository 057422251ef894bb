"""Divide and conquer: drop the rows along the direction of largest spread."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.spectral import top_eigenpair
from flwr_ctma.engine.updates import Updates

__all__ = ["DnC"]


@dataclass(frozen=True)
class DnC(Aggregator, name="dnc"):
    """Divide and conquer: f times, the row farthest along the top direction is dropped.

    The top direction is the first right singular vector of the remaining rows, centred
    at their mean; the result is the mean of the n − f rows that remain. This form is
    deterministic and uses all coordinates, through the (n, n) Gram matrix; `SampledDnC`
    is the published form. Each of the f rounds takes at most 96 products with an (n, n)
    matrix. Rows have no weights, because it is rows that are dropped. No κ is known.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning
    Attacks and Defenses for Federated Learning", NDSS 2021, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> DnC()(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    array([2.])
    """

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        gram = rows.centred_gram()
        left, along = np.arange(budget.n), np.zeros(budget.n)
        for _ in range(budget.count):
            means = gram.mean(axis=0)
            centred = gram - means[:, None] - means + means.mean()
            along = top_eigenpair(centred, along)[1]
            kept = np.arange(len(left)) != np.argmax(np.abs(along))
            left, along, gram = left[kept], along[kept], gram[np.ix_(kept, kept)]
        coefficients = np.zeros(budget.n)
        coefficients[left] = 1 / len(left)
        return Combination(rows.to_stack_coefficients(coefficients))
