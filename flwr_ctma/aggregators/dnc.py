"""Divide and conquer: drop the rows along the direction of largest spread."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.spectral import top_direction
from flwr_ctma.engine.updates import Updates

__all__ = ["DnC"]


@dataclass(frozen=True)
class DnC(Aggregator, name="dnc"):
    """Divide and conquer: f times, the row farthest along the top direction is dropped.

    The top direction is the first right singular vector of the remaining rows, centred
    at their mean; the result is the mean of the n − f rows that remain. The
    published form, `sampleddnc`, drops rows at once in random subsets of coordinates,
    to save time; this form is deterministic and uses all coordinates, through the
    (n, n) Gram matrix. Each of the f rounds takes at most 64 products with an (n, n)
    matrix: 6 s of a CPU for the slowest rows known at n = 1000. Rows have no weights,
    because it is rows that are dropped.

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

    def kappa(self, n: int, f: int) -> float:
        """Bound the error, even with the largest eigenvalue of S for its variance λ.

        If no row of S is dropped, all others are, and the error is 0. Otherwise take
        the first step that drops one: S has lost nothing, and b ≤ f other rows are
        left. Along the top direction let L be the mean of these, counted from mean_S.
        The mean of all m = n − f + b rows is at bL/m. So the other rows are
        (n − f)|L|/m from it on average, and the row of S that is dropped, the farthest
        of all, is at most √((n − f)λ) + b|L|/m from it: |L| is at most
        m√((n − f)λ)/(n − f − b). So all rows are within
        M = √((n − f)λ)(n − f)/(n − f − b) of it, and the sum of squares in any
        direction is at most mM². Two sets of n − f of these rows, S and those of the
        result, have means within √(bM²/(n − f)) of the mean of all. The sum of both,
        squared, is largest for b = f.
        """
        return 4 * f * ((n - f) / (n - 2 * f)) ** 2

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        gram, n = rows.centred_gram(), budget.n
        left, along = np.arange(n), np.zeros(n)
        coefficients = np.full(n, 1 / n)
        for dropped in range(1, budget.count + 1):
            along = top_direction(gram, coefficients[left], along)[1]
            counted = coefficients[left] > 0
            far = left[np.argmax(np.where(counted, np.abs(along), -1.0))]
            coefficients[coefficients > 0] = 1 / (n - dropped)
            coefficients[far] = 0.0
            if n - dropped < 0.8 * len(left):
                kept = coefficients[left] > 0
                left, along = left[kept], along[kept]
                gram = gram[np.ix_(kept, kept)]
        return Combination(rows.to_stack_coefficients(coefficients))
