"""A search for the update that moves the rule in use farthest."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import ClassVar, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Attack, Omniscient, Rule
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Found", "RuleAware", "Search", "maximise"]

Float64 = NDArray[np.float64]


def maximise(score: Callable[[float], float], evaluations: int) -> float:
    """Search the positive numbers for one with a large score.

    The search tries powers of 4 from 1/64 to 64, then always the geometric middle of
    the wider of the two gaps beside the best number so far. Beyond the last power the
    gap is a factor of 4.

    Parameters
    ----------
    score : callable
        Any function. Of several maxima the search finds one of the largest, probably,
        not certainly.
    evaluations : int
        Number of calls.

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


class Found(NamedTuple):
    """The best update on a line."""

    score: float
    row: Rows
    direction: Rows
    shift: Rows
    """Output of the rule minus the centre, with this update from all colluders."""


class Search:
    """What a rule returns if all colluders send the same update.

    Parameters
    ----------
    known : Knowledge
        Updates and weights of the round.
    rule : Rule
        The rule in use, A: with everything that it is composed of.
    f : int | float
        Number or share of malicious clients that the rule is told.
    evaluations : int
        Number of calls of the rule on each line.
    objective : str (default: "distance")
        The score of an output: ‖A − μ‖ for "distance", or −⟨A, μ⟩/‖μ‖, the step
        against the honest mean, for "descent".
    """

    def __init__(
        self,
        known: Knowledge,
        rule: Rule,
        f: int | float,
        evaluations: int,
        objective: str = "distance",
    ) -> None:
        self.known = known
        self._rule, self._f = rule, f
        self._evaluations = evaluations
        self._objective = objective
        uniform = bool(np.all(known.weights == known.weights[0]))
        self._weights = None if uniform else known.weights

    def along(
        self,
        direction: Rows,
        origin: Rows | None = None,
        centre: Rows | None = None,
        evaluations: int | None = None,
    ) -> Found:
        """Return the best update s + γ·p with γ > 0.

        Parameters
        ----------
        direction : ndarray of shape (d,)
            p.
        origin : ndarray of shape (d,), optional
            s; μ if None.
        centre : ndarray of shape (d,), optional
            Point that the output of the rule should leave; μ if None.
        evaluations : int, optional
            Number of calls of the rule; that of the search if None.
        """
        known, (h, n) = self.known, (len(self.known.honest), len(self.known.weights))
        origin = known.mean if origin is None else origin
        centre = known.mean if centre is None else centre
        stack = self._stack([*known.honest, origin, direction])

        def coefficients(gamma: float) -> Float64:
            return np.append(np.zeros(h), [1.0, gamma])

        def shift(gamma: float) -> Rows:
            # No row is built: the rule gets combinations of the existing rows.
            mixing = np.eye(n, h + 2)
            mixing[h:] = coefficients(gamma)
            output: Rows = self._rule(stack.mix(mixing), self._f, self._weights)[0]
            return output - centre

        gamma = maximise(
            lambda g: self._score(shift(g)), evaluations or self._evaluations
        )
        row = stack.combine(coefficients(gamma))[0]
        moved = shift(gamma)
        return Found(self._score(moved), row, direction, moved)

    def follow(self, direction: Rows, steps: int) -> Found:
        """Search along a direction, then along the shift that it led to, and so on.

        The shift A − μ is the direction in which the rule has already given way: it
        holds the colluders' own pull and the honest rows that the rule left out.
        """
        best = self.along(direction)
        for _ in range(steps - 1):
            found = self.along(best.shift)
            if found.score <= best.score:
                break
            best = found
        return best

    def without_colluders(self) -> Rows:
        """Return the output of the rule for the honest rows alone."""
        h = len(self.known.honest)
        weights = None if self._weights is None else self._weights[:h]
        output: Rows = self._rule(self._stack(self.known.honest), 0, weights)[0]
        return output

    @cached_property
    def principal(self) -> list[Rows]:
        """Principal directions of the honest spread, largest first, as long as σ."""
        known = self.known
        centred = Updates.of(known.honest).mix(np.eye(len(known.honest)) - known.shares)
        root = np.sqrt(known.shares)
        values, vectors = np.linalg.eigh(root[:, None] * centred.gram() * root)
        tiny = 1e-9 * max(float(values[-1]), 1e-300)
        found = [
            centred.combine(root * vectors[:, i] * (known.spread / sqrt(values[i])))[0]
            for i in reversed(range(len(values)))
            if values[i] > tiny
        ]
        # An eigenvector has no sign: each is turned against the mean.
        return [p if np.dot(p, known.mean) <= 0 else -p for p in found]

    def _stack(self, rows: Rows | list[Rows]) -> Updates:
        """Return rows, with the reference of the rule in use if it has one."""
        reference = self.known.reference
        return Updates.of([Layer(rows)], None if reference is None else [reference])

    def axes(self, count: int) -> Iterator[Rows]:
        """± the first principal directions."""
        for principal in self.principal[:count]:
            yield principal
            yield -principal

    def _score(self, shift: Rows) -> float:
        if self._objective == "distance":
            return float(np.sqrt(np.dot(shift, shift)))
        mean = self.known.mean
        length = float(np.linalg.norm(mean))
        return -float((shift + mean) @ mean) / length if length else 0.0


@dataclass(frozen=True)
class RuleAware(Omniscient):
    """All colluders send the update that a search against the rule in use finds best.

    Parameters
    ----------
    evaluations : int (default: 24)
        Number of calls of the rule on each line that is searched.

    Raises
    ------
    ValueError
        If evaluations is below 1, or the attack is not aimed at a rule.
    """

    needs_rule: ClassVar[bool] = True

    evaluations: int = 24

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.evaluations < 1:
            raise parameter_error("evaluations", "at least 1", self.evaluations)

    @property
    def _objective(self) -> str:
        return "distance"

    @abstractmethod
    def candidates(self, search: Search) -> Iterable[Found]:
        """Return updates to choose the best from."""

    def against(self, rule: Rule, f: int | float) -> Omniscient:
        """Aim at a rule.

        Parameters
        ----------
        rule : Aggregator
            The rule in use.
        f : int | float
            Number or share of malicious clients that the rule is told.
        """
        return _Aimed(self, rule, f)

    def craft(self, known: Knowledge) -> NoReturn:
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
    attack: RuleAware
    rule: Rule
    f: int | float

    def __post_init__(self) -> None:
        """Leave rule and f unchecked: the rule checks them when it is called."""

    def inner(self) -> list[Attack]:
        """Return no attack: the one inside does not need a rule any more."""
        return []

    def __str__(self) -> str:
        return f"{self.attack}"

    def craft(self, known: Knowledge) -> Rows:
        attack = self.attack
        search = Search(known, self.rule, self.f, attack.evaluations, attack._objective)
        return max(attack.candidates(search), key=lambda found: found.score).row
