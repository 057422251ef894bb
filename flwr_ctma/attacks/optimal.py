"""IPM and ALIE with the factor that moves the rule in use farthest."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.attacks.search import Found, RuleAware, Search

__all__ = ["OptimalALIE", "OptimalIPM"]


@dataclass(frozen=True)
class OptimalIPM(RuleAware, name="optimalipm"):
    """IPM with the best ε: all colluders send −ε·μ.

    ε maximises ‖A(x_1, …, x_h, −ε·μ, …, −ε·μ) − μ‖, by line search.

    Parameters
    ----------
    evaluations : int (default: 24)
        Number of calls of the rule.

    Raises
    ------
    ValueError
        If evaluations is below 1, or the attack is not aimed at a rule.

    References
    ----------
    "Optimised FOE" in Allouah et al., "Fixing by Mixing", AISTATS 2023, and ByzFL; the
    idea is of El Mhamdi et al., "Distributed Momentum for Byzantine-resilient SGD",
    ICLR 2021.

    Examples
    --------
    The median of 1, 2, 3 and two rows −2ε is 1 for every ε that is tried, as −2ε ≤ 1.
    (The mean would follow as far as the search goes.)

    >>> from flwr_ctma.aggregators import CwMed
    >>> honest = np.array([[1.0], [2.0], [3.0]])
    >>> OptimalIPM().against(CwMed(), f=2)(honest, num_malicious=2)
    array([[-0.03125],
           [-0.03125]])
    """

    def candidates(self, search: Search) -> list[Found]:
        """0 − ε·μ."""
        known = search.known
        return [search.along(-known.mean, origin=np.zeros_like(known.mean))]


@dataclass(frozen=True)
class OptimalALIE(RuleAware, name="optimalalie"):
    """ALIE with the best z: all colluders send μ − z·σ.

    z maximises ‖A(x_1, …, x_h, μ − z·σ, …, μ − z·σ) − μ‖, by line search.

    Parameters
    ----------
    evaluations : int (default: 24)
        Number of calls of the rule.

    Raises
    ------
    ValueError
        If evaluations is below 1, or the attack is not aimed at a rule.

    References
    ----------
    "Optimised ALIE" in Allouah et al., "Fixing by Mixing", AISTATS 2023, and ByzFL; the
    idea is of El Mhamdi et al., "Distributed Momentum for Byzantine-resilient SGD",
    ICLR 2021.

    Examples
    --------
    CTMA around the median keeps a row beside the median and drops the farthest row. The
    best lie goes down as far as the largest honest row goes up:

    >>> from flwr_ctma.aggregators import CTMA, CwMed
    >>> honest = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    >>> attack = OptimalALIE().against(CTMA(CwMed()), f=1)
    >>> attack(honest, num_malicious=1).round(2)
    array([[-1.]])
    """

    def candidates(self, search: Search) -> list[Found]:
        """μ − z·σ."""
        return [search.along(-search.known.std)]
