"""Krum and MultiKrum: the rows closest to their neighbours."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Krum", "MultiKrum", "krum_scores"]


@dataclass(frozen=True)
class Krum(Aggregator):
    """Krum: the row whose n − f − 2 nearest others are nearest in sum of squares.

    score_i = Σ_{j in N_i} ‖x_i − x_j‖², N_i the n − f − 2 rows nearest to row i, itself
    not among them. Needs n ≥ 2f + 3.

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

    def kappa(self, n: int, f: int) -> float | None:
        """6 (1 + f/(n − 2f)) (Allouah et al., AISTATS 2023, Table 1)."""
        return 6 * (1 + f / (n - 2 * f)) if n >= 2 * f + 3 else None

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        return Combination(rows.to_stack_coefficients(_mean_of_best(rows, budget, 1)))


@dataclass(frozen=True)
class MultiKrum(Aggregator):
    """MultiKrum: the mean of the m rows with the best Krum scores.

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

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        m = budget.n - budget.count if self.m is None else self.m
        if m > budget.n:
            raise parameter_error("m", f"at most n = {budget.n}", m)
        return Combination(rows.to_stack_coefficients(_mean_of_best(rows, budget, m)))


def _mean_of_best(rows: Updates, budget: Budget, m: int) -> Float64:
    n, f = budget.n, budget.count
    if n < 2 * f + 3:
        raise parameter_error(
            "f",
            f"at most (n − 3)/2 = {(n - 3) / 2:g} for Krum among n = {n} rows",
            f,
            "Sample more clients, or use ctma(gm).",
        )
    scores = krum_scores(rows.squared_distances(), n - f - 2)
    coefficients = np.zeros(n)
    coefficients[np.argsort(scores, kind="stable")[:m]] = 1 / m
    return coefficients


def krum_scores(squared_distances: Float64, neighbours: int) -> Float64:
    """Sum of the smallest squared distances of each row to others, (n,)."""
    others = squared_distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest = np.partition(others, neighbours - 1, axis=1)[:, :neighbours]
    # The order in which a partition leaves its values must not show in their sum.
    total: Float64 = np.sort(nearest, axis=1).sum(axis=1)
    return total
