"""CTMA: the mean of the rows nearest to any rule's output."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.aggregators.base import Budget, Combination, MetaAggregator
from flwr_ctma.engine.updates import Updates

__all__ = ["CTMA"]


@dataclass(frozen=True)
class CTMA(MetaAggregator, name="ctma"):
    """Centered Trimmed Meta Aggregator.

    With the anchor a = A(x_1, …, x_n), r_i = ‖x_i − a‖ and S the n − f rows with the
    smallest r_i:

        CTMA(x) = mean_{i in S} x_i

    With weights s_i and a Byzantine share λ of their sum (ω-CTMA), rows are taken in
    the order of r_i until their weight is (1 − λ) Σ s; the weight of the last is split.

    Parameters
    ----------
    base : Aggregator
        A. It may be a meta-rule: `CTMA(NNM(CwMed()))` trims the raw rows around the
        anchor `NNM(CwMed())`.

    References
    ----------
    Dahan and Levy, "Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous
    Training", ICML 2024, Algorithm 1 (arXiv 2405.14759). Weighted form: Dahan and Levy,
    "Weight for Robustness", NeurIPS 2024, Algorithm 1 (arXiv 2501.09621).

    `CTMA(CwMed())` is the construction of Aksel, the mean of the rows nearest to the
    coordinate-wise median: Boussetta et al., "AKSEL: Fast Byzantine SGD", OPODIS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import CwMed
    >>> CTMA(CwMed())(np.array([[1.0], [2.0], [2.5], [99.0]]), f=1)
    array([1.83333333])
    """

    def kappa(self, n: int, f: int) -> float | None:
        r"""8f/(n − f) · (1 + f/(n − f) · κ) with κ of the base.

        Let S be any n − f rows and T the rows that are kept. T \ S and S \ T have the
        same number m ≤ f of rows, and those of T are nearer to the anchor a. Hence
        ‖mean_T − mean_S‖ ≤ (2/(n − f)) Σ_{S \ T} ‖x_i − a‖, and with Cauchy and
        Schwarz ‖x_i − a‖² ≤ 2 ‖x_i − mean_S‖² + 2 κ V, V the variance of S, the square
        is at most 4m/(n − f)² · (2 (n − f) V + 2 m κ V).
        """
        base = self.base.kappa(n, f)
        return None if base is None else 8 * f / (n - f) * (1 + f / (n - f) * base)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        anchor = self.base.solve(rows, budget)
        order = np.argsort(anchor.squared_distances(rows), kind="stable")
        return Combination(rows.to_stack_coefficients(budget.kept(order)))
