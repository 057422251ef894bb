"""Attacks that search direction and strength against the rule in use."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.attacks.knowledge import Rows
from flwr_ctma.attacks.search import Found, RuleAware, Search
from flwr_ctma.errors import parameter_error

__all__ = ["PGA", "SCM", "Adaptive", "Directions"]


@dataclass(frozen=True)
class Directions(RuleAware):
    """All colluders send μ + γ·p, with the best of several directions p.

    From each of its starting directions the search also follows the shift of the
    rule's output; see `Search.follow`.
    """

    evaluations: int = 12
    steps: int = 3
    objective: str = "distance"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.steps < 1:
            raise parameter_error("steps", "at least 1", self.steps)
        if self.objective not in ("distance", "descent"):
            raise parameter_error("objective", "distance or descent", self.objective)

    @property
    def _objective(self) -> str:
        return self.objective

    def directions(self, search: Search) -> Iterator[Rows]:
        """Return the starting directions: −μ, −σ and ± the first principal one."""
        yield -search.known.mean
        yield -search.known.std
        for principal in search.principal[:1]:
            yield principal
            yield -principal

    def candidates(self, search: Search) -> Iterator[Found]:
        """Search from every starting direction, then once more along the best."""
        found = [search.follow(p, self.steps) for p in self.directions(search)]
        yield from found
        best = max(found, key=lambda one: one.score)
        yield search.along(best.direction, evaluations=2 * self.evaluations)


@dataclass(frozen=True)
class Adaptive(Directions, name="adaptive"):
    """All colluders send μ + γ·p, with the direction and strength that do most harm.

    γ and p maximise the objective of the rule's output A(x_1, …, x_h, x, …, x). The
    directions that are searched are

        −μ, −σ, ±v_1, and from each of these p ← A − μ, up to `steps` times,

    with the first principal direction v_1 of the honest updates. A − μ is the
    direction in which the rule gives way. The rule is called as a whole, with its f and
    weights, so the attack is aimed at every rule that it is composed of.

    Parameters
    ----------
    evaluations : int (default: 12)
        Number of calls of the rule on each line, twice as many on the best line.
    steps : int (default: 3)
        Number of lines from each starting direction. At least 1.
    objective : str (default: "distance")
        What is maximised: the distance ‖A − μ‖, or for "descent" the step against the
        honest mean, −⟨A, μ⟩/‖μ‖.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or the attack is not aimed at a rule.

    References
    ----------
    The line search over γ is that of `OptimalIPM`. The search over directions is this
    library's; Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, §IV,
    compare the first two directions and sign(μ).

    Examples
    --------
    The honest updates differ in the second coordinate. There the mean of the two rows
    that CTMA keeps moves farther than along −μ:

    >>> from flwr_ctma.aggregators import CTMA, CwMed
    >>> from flwr_ctma.attacks import OptimalIPM
    >>> honest = np.array([[1.0, 2.0], [1.0, 0.0], [1.0, -2.0]])
    >>> rule = CTMA(CwMed())
    >>> def shift(attack):
    ...     sent = attack.against(rule, f=1)(honest, num_malicious=1)
    ...     output = rule(np.vstack([honest, sent]), f=1)
    ...     return round(float(np.linalg.norm(output - honest.mean(axis=0))), 2)
    >>> shift(OptimalIPM()), shift(Adaptive())
    (0.94, 2.0)
    """


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
