"""Compositions of attacks: none, two at once, on a schedule, in turns."""

from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message

from flwr_ctma.attacks.base import Attack, Omniscient, iter_attacks
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = ["Alternate", "Both", "During", "Honest", "Then"]


@dataclass(frozen=True)
class Honest(Attack, name="none"):
    """Behave honestly: `none` in a run-config."""


@dataclass(frozen=True)
class Both(Attack, name="both"):
    """Two attacks of one client at once: the second acts on what the first sends.

    Parameters
    ----------
    first : Attack
        The attack nearer to the data, for example `LabelFlip` or `Backdoor`.
    second : Attack
        The attack nearer to the server, for example `Scaling` or `InflatedWeight`.

    Raises
    ------
    ValueError
        If one of them is an attack of colluders: these replace the whole reply.

    Examples
    --------
    >>> from flwr_ctma.attacks import InflatedWeight, SignFlip
    >>> str(Both(SignFlip(), InflatedWeight(factor=50.0)))
    'both(signflip, inflatedweight(factor=50.0))'
    """

    first: Attack
    second: Attack

    def __post_init__(self) -> None:
        """Check that a client can mount both alone."""
        super().__post_init__()
        for name, attack in (("first", self.first), ("second", self.second)):
            if any(isinstance(inner, Omniscient) for inner in iter_attacks(attack)):
                raise parameter_error(
                    name,
                    "an attack that a client can mount alone",
                    str(attack),
                    "Colluders on the server replace the whole reply.",
                )

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Apply the second attack to what the first one sends."""

        def first(message: Message, context: Context) -> Message:
            return self.first.train(message, context, respond, rng)  # type: ignore

        return self.second.train(message, context, first, rng)

    def evaluate(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Apply the second attack to what the first one sends."""

        def first(message: Message, context: Context) -> Message:
            return self.first.evaluate(message, context, respond, rng)  # type: ignore

        return self.second.evaluate(message, context, first, rng)

    def at(self, server_round: int, rng: np.random.Generator) -> Attack:
        """Return both, each with its behaviour in this round."""
        return Both(self.first.at(server_round, rng), self.second.at(server_round, rng))


@dataclass(frozen=True)
class During(Attack, name="during"):
    """An attack in some rounds, honest behaviour in the others.

    With a `start` it is a sleeper: honest until it is trusted. `during(alie, start=20)`
    strikes from round 20 on, `during(alie, start=20, stop=21)` once, and
    `during(alternate(alie, none, period=5), start=20)` for five rounds out of ten.

    Parameters
    ----------
    attack : Attack
        The attack of these rounds.
    start : int (default: 1)
        First round of the attack.
    stop : int | None (default: None)
        First round after the attack; it never ends if None.
    probability : float (default: 1.0)
        Probability of the attack in each of these rounds. Every client draws
        independently, colluders draw together.

    Raises
    ------
    ValueError
        If stop is not after start, or probability is not in [0, 1].

    Examples
    --------
    >>> from flwr_ctma.attacks import SignFlip
    >>> attack = During(SignFlip(), start=3, stop=5)
    >>> [str(attack.at(r, np.random.default_rng(r))) for r in range(1, 6)]
    ['none', 'none', 'signflip', 'signflip', 'none']
    """

    attack: Attack
    start: int = 1
    stop: int | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.stop is not None and self.stop <= self.start:
            raise parameter_error("stop", f"after start = {self.start}", self.stop)
        if not 0 <= self.probability <= 1:
            raise parameter_error("probability", "in [0, 1]", self.probability)

    def at(self, server_round: int, rng: np.random.Generator) -> Attack:
        """Return the attack if the round has it, `Honest` otherwise."""
        happens = rng.random() < self.probability
        late = self.stop is not None and server_round >= self.stop
        if server_round < self.start or late or not happens:
            return Honest()
        return self.attack.at(server_round, rng)


@dataclass(frozen=True)
class Then(Attack, name="then"):
    """One attack before a round, another one from this round on.

    Parameters
    ----------
    first : Attack
        The attack before round `start`.
    second : Attack
        The attack from round `start` on; it may be another `Then`.
    start : int
        First round of the second attack.

    Examples
    --------
    >>> from flwr_ctma.attacks import SignFlip, Zero
    >>> attack = Then(SignFlip(), Zero(), start=3)
    >>> [str(attack.at(r, np.random.default_rng(r))) for r in range(1, 5)]
    ['signflip', 'signflip', 'zero', 'zero']
    """

    first: Attack
    second: Attack
    start: int

    def at(self, server_round: int, rng: np.random.Generator) -> Attack:
        """Return the attack of the round."""
        current = self.first if server_round < self.start else self.second
        return current.at(server_round, rng)


@dataclass(frozen=True)
class Alternate(Attack, name="alternate"):
    """Two attacks in turns, beginning with the first in round 1.

    A defence that adapts to one of them meets the other.

    Parameters
    ----------
    first : Attack
        The attack of rounds 1 to `period`.
    second : Attack
        The attack of the following `period` rounds.
    period : int (default: 1)
        Number of rounds before they change. At least 1.

    Raises
    ------
    ValueError
        If period is below 1.

    Examples
    --------
    >>> from flwr_ctma.attacks import SignFlip, Zero
    >>> attack = Alternate(SignFlip(), Zero(), period=2)
    >>> [str(attack.at(r, np.random.default_rng(r))) for r in range(1, 7)]
    ['signflip', 'signflip', 'zero', 'zero', 'signflip', 'signflip']
    """

    first: Attack
    second: Attack
    period: int = 1

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.period < 1:
            raise parameter_error("period", "at least 1", self.period)

    def at(self, server_round: int, rng: np.random.Generator) -> Attack:
        """Return the attack of the round."""
        turn = (server_round - 1) // self.period
        return (self.second if turn % 2 else self.first).at(server_round, rng)
