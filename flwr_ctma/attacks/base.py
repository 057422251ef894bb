"""What an attack is: a client that does as it should, but for what it overrides.

A Byzantine client can lie where it trains, where it evaluates, and, if it colludes with
others who see what the honest ones send, where the replies meet: on the server of a
simulation. An attack overrides one of the three; the rest stays honest.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from numpy.typing import NDArray

from flwr_ctma.attacks import messages
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import check_fields, spell

__all__ = ["ATTACKED", "MALICIOUS", "Attack", "Omniscient", "Rows", "Rule", "parts"]

Rows = NDArray[np.floating[Any]]


class Rule(Protocol):
    """What an attack needs of an aggregator: its output, given f and weights."""

    def __call__(self, updates: Any, f: int | float, weights: Any = None) -> Any:
        """Aggregate `Updates` to a list with one array for each panel."""


ATTACKED = "flwr-ctma.attacked"
"""Key of the train config by which the server says that it lets colluders act."""

MALICIOUS = "flwr-ctma.malicious"
"""Key of the (empty) ConfigRecord by which a colluder's reply says whose it is."""


class Attack:
    """Behaviour of a Byzantine client; by itself, that of an honest one.

    Attacks are frozen dataclasses: their `repr` shows their parameters, and their `str`
    is what `parse_attack` reads.
    """

    needs_rule: ClassVar[bool] = False
    """Whether it has to be told which rule it is `against`."""

    needs_own: ClassVar[bool] = True
    """Whether it matters what the malicious clients would send themselves."""

    def __post_init__(self) -> None:
        """Check that parameters are of the types that they are declared."""
        check_fields(self)

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Answer a message to train.

        Parameters
        ----------
        message : Message
            What the server sent; not to be changed, other nodes may hold it too.
        context : Context
            The node's; `context.state` is the attacker's memory.
        respond : ClientAppCallable
            The honest ClientApp.
        rng : np.random.Generator
            Fixed by seed, node and round.

        Returns
        -------
        Message | None
            The reply, None for silence.
        """
        return respond(message, context)

    def evaluate(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Answer a message to evaluate; as `train`."""
        return respond(message, context)

    def collude(
        self,
        honest: Rows,
        own: Rows,
        rng: np.random.Generator,
        weights: NDArray[np.float64] | None = None,
    ) -> Rows:
        """Map what all clients would send, honestly, to what the malicious ones send.

        Parameters
        ----------
        honest : ndarray of shape (h, d)
            Updates of the honest clients.
        own : ndarray of shape (f, d)
            Updates that the malicious clients computed from their own data.
        rng : np.random.Generator
            The attackers' common source of chance.
        weights : ndarray of shape (h + f,), optional
            Weight of each row in the aggregation, the honest first; equal if None.

        Returns
        -------
        ndarray of shape (f, d)
        """
        return own

    def at(self, server_round: int, rng: np.random.Generator) -> "Attack":
        """Behaviour in one round: itself, unless there is a schedule."""
        return self

    def against(self, rule: Rule, f: int | float) -> "Attack":
        """Behaviour once the aggregation rule is known: itself, unless it matters."""
        return self

    def held(self) -> list["Attack"]:
        """Attacks that this one is made of."""
        return [value for value in vars(self).values() if isinstance(value, Attack)]

    def __str__(self) -> str:
        """Spelling in a run-config."""
        from flwr_ctma.attacks import ATTACKS

        return spell(self, ATTACKS)


def parts(attack: Attack) -> Iterator[Attack]:
    """Walk through an attack and all that it holds."""
    yield attack
    for held in attack.held():
        yield from parts(held)


class Omniscient(Attack):
    """Colluders who see every honest update: `attack(honest, num_malicious, rng)`.

    Their place is on the server of a simulation, in `AttackedStrategy`. On the client
    they train honestly and mark the reply, for the server to put theirs in its place.
    """

    needs_own: ClassVar[bool] = False

    def __call__(
        self,
        honest: Rows,
        num_malicious: int,
        rng: np.random.Generator | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> Rows:
        """Map honest updates to those of the malicious clients.

        Parameters
        ----------
        honest : ndarray of shape (h, d)
            Updates of the honest clients.
        num_malicious : int
            f: how many rows to make.
        rng : np.random.Generator, optional
            For attacks that leave something to chance.
        weights : ndarray of shape (h + f,), optional
            Weight of each row in the aggregation, as counts, the honest first; all 1 if
            None. Integer weights are the same as repeated rows.

        Returns
        -------
        ndarray of shape (f, d)
            In the dtype of `honest`; perhaps one row seen f times, read-only.
        """
        honest = np.asarray(honest)
        if honest.ndim != 2 or 0 in honest.shape or honest.dtype.kind != "f":
            raise parameter_error(
                "honest",
                "floats of shape (h, d), one row for each honest client",
                f"{honest.dtype} of shape {honest.shape}",
            )
        if num_malicious < 0:
            raise parameter_error("num_malicious", "0 or more", num_malicious)
        if weights is None:
            weights = np.ones(len(honest) + num_malicious)
        elif len(weights) != len(honest) + num_malicious or not np.all(weights >= 0):
            raise parameter_error(
                "weights",
                f"{len(honest) + num_malicious} numbers, none negative: one for each "
                "honest client, then one for each malicious one",
                weights,
            )
        if num_malicious == 0:
            return honest[:0]
        rng = np.random.default_rng(0) if rng is None else rng
        weights = np.asarray(weights, np.float64)
        counts = weights[: len(honest)] > 0
        if not counts.any():
            raise parameter_error("weights", "not zero for all the honest", weights)
        if not counts.all():
            honest, weights = (
                honest[counts],
                weights[[*counts, *[True] * num_malicious]],
            )
        rows = self.forge(honest, weights, rng)
        return np.broadcast_to(rows, (num_malicious, honest.shape[1]))

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """Make one row that all colluders send, or a row for each; checked input."""
        raise NotImplementedError

    def collude(
        self,
        honest: Rows,
        own: Rows,
        rng: np.random.Generator,
        weights: NDArray[np.float64] | None = None,
    ) -> Rows:
        """Send what the attack makes of the honest updates."""
        return self(honest, len(own), rng, weights)

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Train honestly and mark the reply for the colluders on the server."""
        if not any(ATTACKED in c for c in message.content.config_records.values()):
            raise parameter_error(
                "attack",
                "one that a client can mount alone",
                str(self),
                "It needs to see the honest updates: wrap the server's strategy, "
                f"`AttackedStrategy(strategy, attack={self!r})`.",
            )
        reply = respond(message, context)
        return messages.replace(reply, {MALICIOUS: ConfigRecord({})})
