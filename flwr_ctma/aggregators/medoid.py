"""The medoid: the row that is nearest to all others."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.updates import Updates

__all__ = ["Medoid"]


@dataclass(frozen=True)
class Medoid(Aggregator, name="medoid"):
    """Medoid: the row with the smallest sum of distances Σ_j w_j ‖x_i − x_j‖.

    It is the geometric median among the rows, and needs no f. Rows of weight 0 are not
    returned.

    References
    ----------
    Kaufman and Rousseeuw, "Clustering by Means of Medoids", 1987.

    Examples
    --------
    >>> import numpy as np
    >>> Medoid()(np.array([[0.0], [1.0], [3.0], [99.0]]), f=1)
    array([1.])
    """

    weighted: ClassVar[bool] = True

    def kappa(self, n: int, f: int) -> float | None:
        """((√2 (n − f) + f)/(n − 2f))².

        Let S be any m = n − f rows, V their variance, a_i = ‖x_i − mean_S‖ and k the
        row that is returned. Its sum is at most the mean sum of S, m√(2V) + f√V +
        Σ_{j not in S} a_j, and at least m a_k + Σ_{j not in S} (a_j − a_k).
        """
        return ((2**0.5 * (n - f) + f) / (n - 2 * f)) ** 2

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        sums = np.sqrt(rows.squared_distances()) @ budget.shares
        chosen = np.zeros(budget.n)
        chosen[np.argmin(np.where(budget.shares > 0, sums, np.inf))] = 1.0
        return Combination(rows.to_stack_coefficients(chosen))
