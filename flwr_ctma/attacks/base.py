"""What an attack is: a client that behaves honestly, except where it overrides.

A Byzantine client can lie when it trains and when it evaluates. If it colludes with
others that see the honest updates, it can also lie where the replies meet: on the
server of a simulation. An attack overrides one of the three; the rest stays honest.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from numpy.typing import NDArray

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.elsewhere import translate
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import records_of
from flwr_ctma.spec import check_fields, parse, spell

__all__ = [
    "ATTACKED",
    "ATTACKS",
    "MALICIOUS",
    "Attack",
    "Omniscient",
    "Rows",
    "Rule",
    "iter_attacks",
    "parse_attack",
]

ATTACKED = "flwr-ctma.attacked"
"""Key in the train config: the server lets colluders act."""

MALICIOUS = "flwr-ctma.malicious"
"""Key of the empty ConfigRecord that marks a reply as a colluder's."""

# Names of attacks in a spelling: neither keys nor values of parameters.
_NAMES = re.compile(r"(?<![=\w.-])[A-Za-z_]\w*(?!\w|\s*=)")

ATTACKS: dict[str, type["Attack"]] = {}
"""Every attack that a run-config can name, by its name."""


class Rule(Protocol):
    """What an attack needs of an aggregator: its output, given f and weights."""

    def __call__(self, updates: Any, f: int | float, weights: Any = None) -> Any:
        """Aggregate `Updates` to a list with one array for each layer."""


class Attack:
    """Behaviour of a Byzantine client; by itself, that of an honest one.

    Attacks are frozen dataclasses: their `repr` shows their parameters, and
    `parse_attack` reads their `str`. A subclass with a name registers itself:
    `class SignFlip(Attack, name="signflip")`.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Half(Attack, name="half"):
    ...     '''Send half of the honest update.'''
    >>> parse_attack("half")
    Half()
    >>> del ATTACKS["half"]
    """

    needs_rule: ClassVar[bool] = False
    """Whether the attack must know the rule that it is `against`."""

    needs_malicious: ClassVar[bool] = True
    """Whether the malicious clients' own honest updates matter."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        """Enter a named subclass in `ATTACKS`."""
        super().__init_subclass__(**kwargs)
        if name is None:
            return
        other = ATTACKS.setdefault(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise parameter_error(
                "name", "free", name, f"{other.__module__}.{other.__qualname__} has it."
            )
        ATTACKS[name] = cls  # a module that is imported again

    def __post_init__(self) -> None:
        """Check that the parameters have their declared types."""
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
            From the server. Do not change it: other nodes may hold the same one.
        context : Context
            Of the node; `context.state` is the attacker's memory.
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
        """Answer a message to evaluate; see `train`."""
        return respond(message, context)

    def collude(self, known: Knowledge) -> Rows:
        """Return what the malicious clients send together.

        Parameters
        ----------
        known : Knowledge
            Updates of all clients, and what else the colluders know.

        Returns
        -------
        ndarray of shape (f, d)
        """
        return known.malicious

    def at(self, server_round: int, rng: np.random.Generator) -> "Attack":
        """Return the behaviour in one round: the attack itself, without a schedule."""
        return self

    def against(self, rule: Rule, f: int | float) -> "Attack":
        """Return the attack aimed at a rule: itself, unless it needs the rule."""
        return self

    def inner(self) -> list["Attack"]:
        """Return the attacks that this one is composed of."""
        return [value for value in vars(self).values() if isinstance(value, Attack)]

    def __str__(self) -> str:
        """Spelling in a run-config."""
        return spell(self, ATTACKS)


class Omniscient(Attack):
    """Colluders who see every honest update: `attack(honest, num_malicious, rng)`.

    They act on the server of a simulation, in `AttackedStrategy`. On the client they
    train honestly and mark the reply, which the server then replaces.
    """

    needs_malicious: ClassVar[bool] = False

    def __call__(
        self,
        honest: Rows,
        num_malicious: int,
        rng: np.random.Generator | None = None,
        weights: NDArray[np.float64] | None = None,
        reference: Rows | None = None,
    ) -> Rows:
        """Map honest updates to those of the malicious clients, in a single round.

        The malicious clients' own honest updates are taken to be the honest mean.

        Parameters
        ----------
        honest : ndarray of shape (h, d)
            Updates of the honest clients.
        num_malicious : int
            f, the number of rows to return.
        rng : np.random.Generator, optional
            For attacks that draw; of seed 0 if None.
        weights : ndarray of shape (h + f,), optional
            Weight of each row in the aggregation, as counts, the honest first; all 1 if
            None. Integer weights are the same as repeated rows.
        reference : ndarray of shape (d,), optional
            The row that the rule in use trusts or starts from, for attacks that are
            aimed at one.

        Returns
        -------
        ndarray of shape (f, d)
            In the dtype of `honest`; perhaps one row seen f times, read-only.
        """
        honest = np.asarray(honest)
        if num_malicious < 0:
            raise parameter_error("num_malicious", "0 or more", num_malicious)
        rng = np.random.default_rng(0) if rng is None else rng
        width = honest.shape[-1] if honest.ndim else 0
        # Checked with placeholders first: a mean of malformed rows has no meaning.
        own = np.broadcast_to(np.zeros(width, honest.dtype), (num_malicious, width))
        known = Knowledge(honest, own, rng, weights)  # type: ignore[arg-type]
        own = np.broadcast_to(known.mean, (num_malicious, width))
        return self.collude(
            Knowledge(honest, own, rng, known.weights, reference=reference)
        )

    def collude(self, known: Knowledge) -> Rows:
        """Return the updates that the attack makes of what the colluders know."""
        if known.f == 0:
            return known.honest[:0]
        rows = self.craft(known.without_weightless())
        rows = rows.astype(known.honest.dtype, copy=False)
        return np.broadcast_to(rows, (known.f, known.honest.shape[1]))

    def craft(self, known: Knowledge) -> Rows:
        """Make one row that all colluders send, or a row for each; f is at least 1."""
        raise NotImplementedError

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Train honestly and mark the reply for the colluders on the server."""
        if not any(
            ATTACKED in c for c in records_of(message.content, ConfigRecord).values()
        ):
            raise parameter_error(
                "attack",
                "one that a client can mount alone",
                str(self),
                "It needs to see the honest updates: wrap the server's strategy, "
                f"`AttackedStrategy(strategy, attack={self!r})`.",
            )
        reply = respond(message, context)
        return messages.replace(reply, {MALICIOUS: ConfigRecord({})})


def iter_attacks(attack: Attack) -> Iterator[Attack]:
    """Iterate over an attack and all attacks that it is composed of."""
    yield attack
    for inner in attack.inner():
        yield from iter_attacks(inner)


def parse_attack(text: str | Attack) -> Attack:
    """Build the attack that a text spells.

    Parameters
    ----------
    text : str | Attack
        A name in `ATTACKS`, with its parameters and inner attacks in parentheses. An
        attack is returned as it is.

    Raises
    ------
    ValueError
        If the text is malformed. The message says what is allowed, and how the attack
        is spelled here if another library has the name.

    Examples
    --------
    >>> parse_attack("malformed(fault=wrong-shape)")
    Malformed(fault='wrong-shape')
    >>> str(parse_attack("during(both(signflip, inflatedweight), start=5)"))
    'during(both(signflip, inflatedweight), start=5)'
    >>> parse_attack("SignFlipping")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ... `SignFlipping` of ByzFL is `ipm(epsilon=1)` here; ...
    """
    if isinstance(text, Attack):
        return text
    names = _NAMES.findall(text) if isinstance(text, str) else []
    foreign = [hint for n in names if n not in ATTACKS and (hint := translate(n))]
    if foreign:
        raise parameter_error(
            "attack", "spelled as in this library", text, " ".join(foreign)
        )
    attack: Attack = parse(text, ATTACKS, "attack")
    return attack
