"""IPM and ALIE with the factor that moves the very rule in use farthest."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Attack, Omniscient, Rows, Rule
from flwr_ctma.attacks.moments import deviation, mean
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.errors import parameter_error

__all__ = ["OptimalALIE", "OptimalIPM", "maximise"]

Float64 = NDArray[np.float64]


def maximise(score: Callable[[float], float], evaluations: int) -> float:
    """Search the positive numbers for one of a large score.

    Powers of 4 from 1/64 to 64 first, then always the geometric middle of the wider of
    the two gaps beside the best so far; beyond the last power the gap is one of 4.

    Parameters
    ----------
    score : callable
        Of any shape: with several maxima, one of the largest is likely, not certain.
    evaluations : int
        How often to call it.

    Examples
    --------
    >>> round(maximise(lambda x: -(x - 10) ** 2, 24), 2)
    10.0
    """
    tried: dict[float, float] = {}
    for power in range(-3, 4)[:evaluations]:
        tried[4.0**power] = score(4.0**power)
    while len(tried) < evaluations:
        best = max(tried, key=lambda x: tried[x])
        lower = max((x for x in tried if x < best), default=best / 4)
        upper = min((x for x in tried if x > best), default=best * 4)
        middle = sqrt(best * (lower if best / lower > upper / best else upper))
        tried[middle] = score(middle)
    return max(tried, key=lambda x: tried[x])


@dataclass(frozen=True)
class _Optimal(Omniscient):
    """All colluders send a + γ·p, with the γ that moves a rule's output farthest."""

    needs_rule: ClassVar[bool] = True

    evaluations: int = 24

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.evaluations < 1:
            raise parameter_error("evaluations", "at least 1", self.evaluations)

    @abstractmethod
    def line(
        self, honest: Rows, shares: Float64
    ) -> tuple[list[Rows], Float64, Float64]:
        """Give rows to combine, and the coefficients of a and of p in them."""

    def against(self, rule: Rule, f: int | float) -> Omniscient:
        """Aim at a rule.

        Parameters
        ----------
        rule : Aggregator
            The rule in use.
        f : int | float
            How many malicious clients it is told to expect.
        """
        return _Aimed(self, rule, f)

    def forge(
        self, honest: Rows, weights: Float64, rng: np.random.Generator
    ) -> NoReturn:
        """Raise: there is no rule to search against."""
        raise parameter_error(
            "attack",
            "aimed at a rule",
            str(self),
            "Call `attack.against(rule, f)(honest, num_malicious)`; AttackedStrategy "
            "does so with the rule of the RobustStrategy it wraps.",
        )


@dataclass(frozen=True)
class _Aimed(Omniscient):
    attack: _Optimal
    rule: Rule
    f: int | float

    def __post_init__(self) -> None:
        """Leave rule and f to the rule, which checks them when it is called."""

    def held(self) -> list[Attack]:
        """None: what it holds is not to be aimed any more."""
        return []

    def __str__(self) -> str:
        return f"{self.attack}"

    def forge(self, honest: Rows, weights: Float64, rng: np.random.Generator) -> Rows:
        h = len(honest)
        shares = weights[:h] / weights[:h].sum()
        rows, start, direction = self.attack.line(honest, shares)
        stack = Updates.of([Layer(rows)])
        centre = mean(honest, weights[:h])
        uniform = bool(np.all(weights == weights[0]))

        def displacement(gamma: float) -> float:
            # No row is built: the rule sees combinations of those that there are.
            mixing = np.zeros((len(weights), len(rows)))
            mixing[:h, :h] = np.eye(h)
            mixing[h:] = start + gamma * direction
            found = self.rule(stack.mix(mixing), self.f, None if uniform else weights)
            off: NDArray[Any] = found[0] - centre
            return float(np.sqrt(np.dot(off, off)))

        gamma = maximise(displacement, self.attack.evaluations)
        forged: Rows = stack.combine(start + gamma * direction)[0]
        return forged.astype(honest.dtype, copy=False)


@dataclass(frozen=True)
class OptimalIPM(_Optimal):
    """IPM with the best ε: all colluders send −ε·μ.

    ε maximises ‖A(x_1, …, x_h, −ε·μ, …, −ε·μ) − μ‖, by line search.

    Parameters
    ----------
    evaluations : int (default: 24)
        How often the rule is tried.

    Raises
    ------
    ValueError
        If evaluations is below 1, or the attack is not aimed at a rule.

    References
    ----------
    As "optimised FOE" in Allouah et al., "Fixing by Mixing", AISTATS 2023, and ByzFL;
    the idea is of El Mhamdi et al., "Distributed Momentum for Byzantine-resilient
    SGD", ICLR 2021.

    Examples
    --------
    The median of 1, 2, 3 and two rows −2ε is 1 as soon as −2ε ≤ 1, for every ε that is
    tried; the mean goes as far as the search does.

    >>> from flwr_ctma.aggregators import CwMed
    >>> honest = np.array([[1.0], [2.0], [3.0]])
    >>> OptimalIPM().against(CwMed(), f=2)(honest, num_malicious=2)
    array([[-0.03125],
           [-0.03125]])
    """

    def line(
        self, honest: Rows, shares: Float64
    ) -> tuple[list[Rows], Float64, Float64]:
        """0 − ε·μ."""
        return list(honest), np.zeros(len(honest)), -shares


@dataclass(frozen=True)
class OptimalALIE(_Optimal):
    """ALIE with the best z: all colluders send μ − z·σ.

    z maximises ‖A(x_1, …, x_h, μ − z·σ, …, μ − z·σ) − μ‖, by line search.

    Parameters
    ----------
    evaluations : int (default: 24)
        How often the rule is tried.

    Raises
    ------
    ValueError
        If evaluations is below 1, or the attack is not aimed at a rule.

    References
    ----------
    As "optimised ALIE" in Allouah et al., "Fixing by Mixing", AISTATS 2023, and ByzFL;
    the idea is of El Mhamdi et al., "Distributed Momentum for Byzantine-resilient
    SGD", ICLR 2021.

    Examples
    --------
    CTMA around the median keeps a row beside it and drops the farthest: the best is to
    go as far down as the largest honest row is up.

    >>> from flwr_ctma.aggregators import CTMA, CwMed
    >>> honest = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    >>> attack = OptimalALIE().against(CTMA(CwMed()), f=1)
    >>> attack(honest, num_malicious=1).round(2)
    array([[-1.]])
    """

    def line(
        self, honest: Rows, shares: Float64
    ) -> tuple[list[Rows], Float64, Float64]:
        """μ − z·σ, σ being one row more."""
        rows = [*honest, deviation(honest, shares)]
        return rows, np.append(shares, 0.0), -np.eye(len(rows))[-1]
