"""Attacks along one line, with the factor that moves the rule in use farthest."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.attacks.search import Found, RuleAware, Search

__all__ = ["PGA", "SCM", "OptimalALIE", "OptimalIPM"]


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


@dataclass(frozen=True)
class SCM(RuleAware, name="scm"):
    """Sensitivity-curve maximisation: the lie that moves the honest aggregate most.

    With T = A(x_1, …, x_h), the aggregate without colluders, all colluders send

        T + γ·σ⊙s,    γ = argmax ‖A(x_1, …, x_h, T + γσ⊙s, …) − T‖

    which is the maximum of the rule's sensitivity curve along σ⊙s. The signs s ∈ {−1,
    1}^d are drawn once and kept over the rounds, so that the shifts add up.

    Parameters
    ----------
    evaluations : int (default: 24)
        Number of calls of the rule.

    Raises
    ------
    ValueError
        If evaluations is below 1, or the attack is not aimed at a rule.

    Notes
    -----
    The authors' code was not found. The paper derives the maximum for single rules;
    this is a search that works for any rule.

    References
    ----------
    Schroth, Vlaski and Zoubir, "Sensitivity Curve Maximization: Attacking Robust
    Aggregators in Distributed Learning", arXiv 2412.17740, 2024.

    Examples
    --------
    The median of 0, 1, 2 and one lie is between 0.5 and 1.5, from the lie 0 or 2 on:

    >>> from flwr_ctma.aggregators import CwMed
    >>> attack = SCM().against(CwMed(), f=1)
    >>> sent = attack(np.array([[0.0], [1.0], [2.0]]), num_malicious=1)
    >>> bool(abs(sent[0, 0] - 1) >= 1)
    True
    """

    def candidates(self, search: Search) -> list[Found]:
        """T + γ·σ⊙s."""
        known = search.known
        memory = known.recall(str(self))
        if "signs" not in memory:
            drawn = known.rng.integers(0, 2, known.honest.shape[1], np.int8)
            memory["signs"] = 2 * drawn - 1
        clean = search.without_colluders()
        return [search.along(known.std * memory["signs"], origin=clean, centre=clean)]


@dataclass(frozen=True)
class PGA(RuleAware, name="pga"):
    """Projected gradient ascent: an ascent of the attackers' own, scaled to pass.

    With the mean ū of the malicious clients' own honest updates, −ū is a step that
    raises their loss. All colluders send it, projected on the sphere whose radius is γ
    times the mean length τ of the honest updates:

        x = −γ·τ·ū/‖ū‖,    γ = argmax ‖A(x_1, …, x_h, x, …, x) − μ‖

    Parameters
    ----------
    evaluations : int (default: 24)
        Number of calls of the rule.

    Raises
    ------
    ValueError
        If evaluations is below 1, or the attack is not aimed at a rule.

    Notes
    -----
    The authors train on the negative loss. A simulation of any app has no access to the
    loss, so −ū stands for it: for one local step of SGD it is the same, for more steps
    a first-order approximation. The authors' code was not found; an independent one
    searches γ as here.

    References
    ----------
    Shejwalkar, Houmansadr, Kairouz and Ramage, "Back to the Drawing Board: A Critical
    Evaluation of Poisoning Attacks on Production Federated Learning", IEEE S&P 2022,
    §V-B.

    Examples
    --------
    The mean follows as far as the search goes, 64 times τ = 2 in the opposite direction
    of the attackers' own update 5:

    >>> from flwr_ctma.aggregators import Mean
    >>> from flwr_ctma.attacks.knowledge import Knowledge
    >>> known = Knowledge(
    ...     honest=np.array([[1.0], [3.0]]),
    ...     malicious=np.array([[5.0]]),
    ...     rng=np.random.default_rng(0),
    ... )
    >>> PGA(evaluations=7).against(Mean(), f=0).collude(known)
    array([[-128.]])
    """

    needs_malicious: ClassVar[bool] = True

    def candidates(self, search: Search) -> list[Found]:
        """−γ·τ·ū/‖ū‖."""
        known = search.known
        own = known.malicious.astype(np.float64).mean(axis=0)
        length = float(np.linalg.norm(own)) or 1.0
        radius = known.shares @ np.linalg.norm(known.honest.astype(np.float64), axis=1)
        ascent = (-own * (radius / length)).astype(known.honest.dtype)
        return [search.along(ascent, origin=np.zeros_like(known.mean))]
