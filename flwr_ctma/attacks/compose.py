"""Attacks made of attacks: none, two at once, some of the time, one after the other."""

from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message

from flwr_ctma.attacks.base import Attack, Omniscient, parts
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = ["Both", "During", "Honest", "Then"]


@dataclass(frozen=True)
class Honest(Attack):
    """Do as one should: `none` in a run-config."""


@dataclass(frozen=True)
class Both(Attack):
    """Two attacks of one client at once: the second acts on what the first sends.

    Parameters
    ----------
    first : Attack
        Nearer to the data: `LabelFlip` or `Backdoor`, say.
    second : Attack
        Nearer to the server: `Scaling` or `InflatedWeight`, say.

    Raises
    ------
    ValueError
        If either takes colluders: those replace the whole reply.

    Examples
    --------
    >>> from flwr_ctma.attacks import InflatedWeight, SignFlip
    >>> str(Both(SignFlip(), InflatedWeight(factor=50.0)))
    'both(signflip, inflatedweight(factor=50.0))'
    """

    first: Attack
    second: Attack

    def __post_init__(self) -> None:
        """Check that a client can do both by itself."""
        super().__post_init__()
        for name, attack in (("first", self.first), ("second", self.second)):
            if any(isinstance(part, Omniscient) for part in parts(attack)):
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
        """Let the second tamper with what the first sends."""

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
        """Let the second tamper with what the first sends."""

        def first(message: Message, context: Context) -> Message:
            return self.first.evaluate(message, context, respond, rng)  # type: ignore

        return self.second.evaluate(message, context, first, rng)

    def at(self, server_round: int, rng: np.random.Generator) -> Attack:
        """Both, each as it is in this round."""
        return Both(self.first.at(server_round, rng), self.second.at(server_round, rng))


@dataclass(frozen=True)
class During(Attack):
    """An attack in some rounds only, honest in the others.

    Parameters
    ----------
    attack : Attack
        What is done then.
    start : int (default: 1)
        The first round.
    stop : int | None (default: None)
        The first round in which it is over; never if None.
    probability : float (default: 1.0)
        With which it happens in each of these rounds: every client draws for itself,
        colluders draw together.

    Raises
    ------
    ValueError
        If stop is not after start, or probability is no probability.

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
        """Return the attack if it happens in this round, `Honest` otherwise."""
        happens = rng.random() < self.probability
        late = self.stop is not None and server_round >= self.stop
        if server_round < self.start or late or not happens:
            return Honest()
        return self.attack.at(server_round, rng)


@dataclass(frozen=True)
class Then(Attack):
    """One attack up to a round, another one from it on.

    Parameters
    ----------
    first : Attack
        What is done before round `start`.
    second : Attack
        What is done from then on; may be another `Then`.
    start : int
        Round in which the second begins.

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
        """Return the one whose time it is."""
        now = self.first if server_round < self.start else self.second
        return now.at(server_round, rng)
