"""Attacks made of attacks: none, two at once, some of the time, one after the other."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Attack, Omniscient, Rows, Rule, parts
from flwr_ctma.attacks.moments import mean
from flwr_ctma.errors import wrong

__all__ = ["Blind", "Both", "During", "Honest", "Mirror", "Then"]


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
        for name, attack in (("first", self.first), ("second", self.second)):
            if any(isinstance(part, Omniscient) for part in parts(attack)):
                raise wrong(
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
        if self.stop is not None and self.stop <= self.start:
            raise wrong("stop", f"after start = {self.start}", self.stop)
        if not 0 <= self.probability <= 1:
            raise wrong("probability", "in [0, 1]", self.probability)

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


@dataclass(frozen=True)
class Blind(Omniscient):
    """Colluders who see only one another: what the honest send, they must guess.

    The wrapped attack gets the malicious clients' own honest updates in place of those
    of the honest clients, f rows that stand for h. This is how ALIE was first proposed:
    mean and standard deviation from the attackers' own data, z from n and f.

    Parameters
    ----------
    attack : Omniscient
        `ALIE` or `IPM`, say.

    Examples
    --------
    >>> from flwr_ctma.attacks import IPM
    >>> honest, own = np.array([[1.0], [3.0], [5.0]]), np.array([[2.0], [4.0]])
    >>> Blind(IPM(epsilon=0.5)).collude(honest, own, np.random.default_rng(0))
    array([[-1.5],
           [-1.5]])
    """

    needs_own: ClassVar[bool] = True

    attack: Omniscient

    def __post_init__(self) -> None:
        """Check that there is something to be blind to."""
        if not isinstance(self.attack, Omniscient):
            raise wrong(
                "attack",
                "one that uses what the honest clients send",
                str(self.attack),
            )

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """Forge from the rows that the attackers do see."""
        return self.attack.forge(honest, weights, rng)

    def collude(
        self,
        honest: Rows,
        own: Rows,
        rng: np.random.Generator,
        weights: NDArray[np.float64] | None = None,
    ) -> Rows:
        """Send what the attack makes of the attackers' own updates."""
        h, f = len(honest), len(own)
        if f == 0:
            return own
        every = np.ones(h + f) if weights is None else weights
        stand_in = every[h:] * (every[:h].sum() / every[h:].sum())
        return self(own, f, rng, np.concatenate([stand_in, every[h:]]))

    def against(self, rule: Rule, f: int | float) -> Attack:
        """Let the wrapped attack know the rule."""
        aimed = self.attack.against(rule, f)
        assert isinstance(aimed, Omniscient)
        return Blind(aimed)


@dataclass(frozen=True)
class Mirror(Omniscient):
    """The same attack from the other side: 2μ − x for every x that it would send.

    μ is the mean of the honest updates. Which of μ − z·σ and μ + z·σ does more harm
    depends on the model, so an attacker tries `alie` and `mirror(alie)`.

    Parameters
    ----------
    attack : Omniscient
        `ALIE` or `MinMax`, say.

    Examples
    --------
    >>> from flwr_ctma.attacks import ALIE
    >>> honest = np.array([[1.0], [2.0], [3.0]])
    >>> ALIE(z=1.5)(honest, num_malicious=1).round(3)
    array([[0.775]])
    >>> Mirror(ALIE(z=1.5))(honest, num_malicious=1).round(3)
    array([[3.225]])
    """

    attack: Omniscient

    def __post_init__(self) -> None:
        """Check that what is sent depends on the honest updates, and on no more."""
        if not isinstance(self.attack, Omniscient):
            found: str | None = "Only colluders know where the other side is."
        elif any(part.needs_own for part in parts(self.attack)):
            found = "`blind(mirror(…))` is what it would be."
        elif any(part.needs_rule for part in parts(self.attack)):
            found = "What is farthest on one side need not be so on the other."
        else:
            found = None
        if found:
            raise wrong(
                "attack",
                "one that makes its updates from those of the honest alone",
                str(self.attack),
                found,
            )

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """2μ − x."""
        centre = mean(honest, weights[: len(honest)])
        return 2 * centre - self.attack.forge(honest, weights, rng)
