"""The weights of double momentum, step by step.

Step t = 1, 2, … of μ²-SGD (Dahan & Levy, ICML 2024) goes from the query point x_t to
x_{t+1}; the gradients g_t at x_t and g̃_t at x_{t-1} are of the same fresh sample:

    d_t     = g_t + (1 - β_t) (d_{t-1} - g̃_t)      corrected momentum
    w_{t+1} = w_t - η α_t d_t                       the iterate
    x_{t+1} = x_t + γ_t (w_{t+1} - x_t)             AnyTime average of the iterates

This β is STORM's, the weight of the *new* gradient: β = 1 forgets the past. The β of
heavy-ball, which PyTorch calls `momentum`, weighs the *old* vector. To tell the two
apart, the parameter here is `storm_beta`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, cast

from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import check_fields, parse, spell

__all__ = [
    "SCHEDULES",
    "Fixed",
    "Floored",
    "Paper",
    "Schedule",
    "Unaveraged",
    "Weights",
    "parse_schedule",
]


class Weights(NamedTuple):
    """α_t, β_t and γ_t of one step."""

    alpha: float
    storm_beta: float
    gamma: float


class Schedule(ABC):
    """The weights of step t, counted from 1."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def __call__(self, t: int) -> Weights:
        """Weights of step t."""

    def __str__(self) -> str:
        """Spell the schedule as `parse_schedule` reads it."""
        return spell(self, SCHEDULES)


@dataclass(frozen=True)
class Paper(Schedule):
    """α_t = t, β_t = 1/t, γ_t = α_{t+1}/α_{1:t+1} = 2/(t + 2).

    The theory covers this schedule (Dahan & Levy, ICML 2024). The step grows with t:
    for T steps, use a learning rate of order 1/T.

    Examples
    --------
    >>> Paper()(4)
    Weights(alpha=4.0, storm_beta=0.25, gamma=0.3333333333333333)
    """

    def __call__(self, t: int) -> Weights:
        """Weights of step t."""
        return Weights(float(t), 1 / t, 2 / (t + 2))


@dataclass(frozen=True)
class Fixed(Schedule):
    """α_t = 1, and the same β and γ in every step.

    Parameters
    ----------
    storm_beta : float (default: 0.25)
        Weight of the new gradient, in (0, 1]: 0.25 in Dahan & Levy (NeurIPS 2024).
    gamma : float (default: 0.1)
        Weight of the new iterate, in (0, 1].

    Raises
    ------
    ValueError
        If either is outside (0, 1].

    Examples
    --------
    >>> Fixed(storm_beta=0.9)(4)
    Weights(alpha=1.0, storm_beta=0.9, gamma=0.1)
    """

    storm_beta: float = 0.25
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("storm_beta", self.storm_beta)
        _check_share("gamma", self.gamma)

    def __call__(self, t: int) -> Weights:
        """Weights of step t."""
        return Weights(1.0, self.storm_beta, self.gamma)


@dataclass(frozen=True)
class Floored(Schedule):
    """α_t = 1, β_t = max(1/t, floor), γ_t = max(2/(t + 1), floor).

    The default of the code released with Dahan & Levy (ICML 2024). Departures from the
    paper:

    1. The step has no α_t.
    2. γ_t is α_t/α_{1:t}, one step behind the paper's.
    3. β and γ are rounded to three decimals and never fall below the floor.

    Parameters
    ----------
    floor : float (default: 0.01)
        Smallest β and γ, in (0, 1].

    Raises
    ------
    ValueError
        If the floor is outside (0, 1].

    Examples
    --------
    >>> Floored()(6), Floored()(1000)
    (Weights(alpha=1.0, storm_beta=0.167, gamma=0.286), \
Weights(alpha=1.0, storm_beta=0.01, gamma=0.01))
    """

    floor: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("floor", self.floor)

    def __call__(self, t: int) -> Weights:
        """Weights of step t."""
        beta, gamma = round(1 / t, 3), round(2 / (t + 1), 3)
        return Weights(1.0, max(beta, self.floor), max(gamma, self.floor))


@dataclass(frozen=True)
class Unaveraged(Schedule):
    """β_t of another schedule, without averaging: α_t = γ_t = 1.

    The client's half of exact μ²-SGD; the other half is on the server. One step with
    learning rate 1 replaces x_t by x_t - d_t, a model that carries the momentum.

    Parameters
    ----------
    base : Schedule
        Source of β_t.

    Examples
    --------
    >>> Unaveraged(Paper())(4)
    Weights(alpha=1.0, storm_beta=0.25, gamma=1.0)
    """

    base: Schedule

    def __call__(self, t: int) -> Weights:
        """Weights of step t."""
        return self.base(t)._replace(alpha=1.0, gamma=1.0)


SCHEDULES: dict[str, type] = {
    "paper": Paper,
    "fixed": Fixed,
    "floored": Floored,
    "unaveraged": Unaveraged,
}


def parse_schedule(schedule: Schedule | str) -> Schedule:
    """Build a schedule from its spelling; return a schedule unchanged.

    Raises
    ------
    ValueError
        If the text spells no schedule.

    Examples
    --------
    >>> parse_schedule("unaveraged(fixed(storm-beta=0.9))")
    Unaveraged(base=Fixed(storm_beta=0.9, gamma=0.1))
    """
    if isinstance(schedule, Schedule):
        return schedule
    return cast(Schedule, parse(schedule, SCHEDULES, "schedule"))


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise parameter_error(name, "in (0, 1]", value)
