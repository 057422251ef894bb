"""Krum and MultiKrum: the rows closest to their neighbours."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Krum", "MultiKrum", "krum_scores"]


@dataclass(frozen=True)
class Krum(Aggregator, name="krum"):
    """Krum: the row with the least sum of squared distances to its nearest others.

    score_i = Σ_{j in N_i} ‖x_i − x_j‖², with N_i the n − f − 2 rows nearest to row i,
    not counting row i. Needs n ≥ 2f + 3. Rows have no weights: a row of weight w would
    be w rows at distance 0 from each other, so the heaviest client would always win.

    Raises
    ------
    ValueError
        If n < 2f + 3.

    References
    ----------
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> Krum()(np.array([[0.0], [1.0], [1.5], [4.0], [99.0]]), f=1)
    array([1.])
    """

    def min_rows(self, f: int) -> int:
        """2f + 3."""
        return 2 * f + 3

    def kappa(self, n: int, f: int) -> float | None:
        """(√(2m(m − 2)/(m − 1)) + √(f + 1))² / h, m = n − f and h = n − 2f − 1.

        Let S be any m rows, V their variance and k the row that is returned. On average
        over S, Σ_{j in S} ‖x_i − x_j‖² = 2mV; the m − 2 smallest of m − 1 terms sum to
        at most (m − 2)/(m − 1) of it, so that score_k ≤ 2m(m − 2)/(m − 1) V. Let H be
        the rows of S among k and N_k, h or more. Then ‖x_k − mean_H‖² ≤ score_k/h, and
        ‖mean_H − mean_S‖² ≤ (m − h)/h V.

        For n − f neighbours, 6 (1 + f/(n − 2f)) holds (Allouah et al., AISTATS 2023,
        Table 1); this bound is smaller unless n − 2f is small.
        """
        if n < self.min_rows(f):
            return None
        m, h = n - f, n - 2 * f - 1
        return (sqrt(2 * m * (m - 2) / (m - 1)) + sqrt(f + 1)) ** 2 / h

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        return Combination(rows.to_stack_coefficients(_mean_of_best(rows, budget, 1)))


@dataclass(frozen=True)
class MultiKrum(Aggregator, name="multikrum"):
    """MultiKrum: the mean of the m rows with the least Krum scores.

    Needs n ≥ 2f + 3. Rows have no weights, for the reason that `Krum` states.

    Parameters
    ----------
    m : int, optional
        n − f if None.

    Raises
    ------
    ValueError
        If m is not one of 1, …, n, or n < 2f + 3.

    References
    ----------
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, section 5.

    Examples
    --------
    >>> import numpy as np
    >>> MultiKrum(m=2)(np.array([[0.0], [1.0], [1.5], [4.0], [99.0]]), f=1)
    array([1.25])
    """

    m: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None and self.m < 1:
            raise parameter_error("m", "at least 1", self.m)

    def min_rows(self, f: int) -> int:
        """2f + 3."""
        return 2 * f + 3

    def kappa(self, n: int, f: int) -> float | None:
        r"""f/m² (√(mn (m − 2)/((m − 1) h)) + √(f (f + 1)/h) + √m)² for m = n − f rows.

        With S, V, H and h as in `Krum.kappa` and T the m rows that are kept: T \ S and
        S \ T have q ≤ f rows each, and the scores of T \ S sum to at most those of
        S \ T, which is at most (m − 2)/(m − 1) m (m + q) V. So Σ_{T \ S} ‖x_k −
        mean_S‖² ≤ (√(m (m + q)(m − 2)/((m − 1) h)) + √(q (f + 1)/h))² V. With Cauchy
        and Schwarz, m ‖mean_T − mean_S‖ is at most √q times the root of that sum, plus
        √q √(mV) for S \ T.

        For fewer rows the bound is Krum's: the mean of their scores is at most the mean
        score of S. No bound holds for more than n − f rows, which may be any.
        """
        kept = n - f if self.m is None else self.m
        if n < self.min_rows(f) or kept > n - f:
            return None
        if kept < n - f:
            return Krum().kappa(n, f)
        m, h = n - f, n - 2 * f - 1
        return (
            f
            / m**2
            * (sqrt(m * n * (m - 2) / ((m - 1) * h)) + sqrt(f * (f + 1) / h) + sqrt(m))
            ** 2
        )

    def _check(self, budget: Budget, weighted: bool) -> None:
        if self.m is not None and self.m > budget.n:
            raise parameter_error("m", f"at most n = {budget.n}", self.m)
        self._check_rows(budget)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        m = budget.n - budget.count if self.m is None else self.m
        return Combination(rows.to_stack_coefficients(_mean_of_best(rows, budget, m)))


def _mean_of_best(rows: Updates, budget: Budget, m: int) -> Float64:
    n, f = budget.n, budget.count
    scores = krum_scores(rows.squared_distances(), n - f - 2)
    coefficients = np.zeros(n)
    coefficients[np.argsort(scores, kind="stable")[:m]] = 1 / m
    return coefficients


def krum_scores(squared_distances: Float64, neighbours: int) -> Float64:
    """Return the sum of the smallest squared distances of each row to others, (n,)."""
    others = squared_distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest = np.partition(others, neighbours - 1, axis=1)[:, :neighbours]
    # The order in which a partition leaves its values must not show in their sum.
    total: Float64 = np.sort(nearest, axis=1).sum(axis=1)
    return total
