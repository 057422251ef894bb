"""Divide and conquer: without the rows along the direction of largest spread."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates

__all__ = ["DnC"]


@dataclass(frozen=True)
class DnC(Aggregator):
    """Divide and conquer: f times, the row farthest along the top direction is dropped.

    The top direction is the first right singular vector of the rows left, less their
    mean; the result is the mean of the n − f rows that remain. The original drops rows
    along directions of random subsets of coordinates, to keep the cost of the singular
    vectors down; the (n, n) Gram matrix gives that of all coordinates at no cost.

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
        left = np.arange(budget.n)
        for _ in range(budget.count):
            to_mean = np.eye(len(left)) - 1 / len(left)
            centred = to_mean @ gram[np.ix_(left, left)] @ to_mean
            along = np.abs(np.linalg.eigh(centred)[1][:, -1])
            left = np.delete(left, np.argmax(along))
        coefficients = np.zeros(budget.n)
        coefficients[left] = 1 / len(left)
        return Combination(rows.to_stack_coefficients(coefficients))
