"""Colluders: who they are, what they see, and what they send in place of their own."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from logging import WARNING
from typing import Any, Protocol, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_ctma.attacks import messages, parse_attack
from flwr_ctma.attacks.base import (
    ATTACKED,
    MALICIOUS,
    Attack,
    Omniscient,
    Rule,
    parts,
)
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error

__all__ = ["Colluders", "Layout", "Seen", "stack"]

Layout = tuple[tuple[str, str, tuple[int, ...], np.dtype[Any]], ...]
"""Record, name, shape and dtype of each array of an update."""


class _Placed(Protocol):
    """Something of a node that has arrays."""

    node: int

    @property
    def layout(self) -> Layout: ...


P = TypeVar("P", bound=_Placed)


class Seen:
    """A reply to training, as the attackers see it.

    Parameters
    ----------
    reply : Message
        What came back, with content.
    asked : Message
        What it answers.
    """

    def __init__(self, reply: Message, asked: Message) -> None:
        self.node = asked.metadata.dst_node_id
        self.marked = MALICIOUS in reply.content
        self.reply = messages.replace(reply, {MALICIOUS: None})
        self.asked = asked

    @cached_property
    def layout(self) -> Layout:
        """Names, shapes and dtypes of what the reply adds to the model."""
        return tuple(
            (*name, update.shape, update.dtype)
            for name, update in self._updates.items()
        )

    @cached_property
    def _updates(self) -> dict[tuple[str, str], NDArray[Any]]:
        try:
            return messages.updates(self.reply, self.asked)
        except Exception:  # a malformed reply: whatever it is, it is no update
            return {}

    @property
    def metrics(self) -> MetricRecord:
        """What the client says about itself; nothing if that is not in one record."""
        records = list(self.reply.content.metric_records.values())
        return records[0] if len(records) == 1 else MetricRecord()

    def take(self) -> list[NDArray[Any]]:
        """Give the update, array by array, and forget it: models are large."""
        taken = [self._updates[record, key].ravel() for record, key, *_ in self.layout]
        self._updates = {}
        return taken

    def answer(self, row: NDArray[Any]) -> None:
        """Put another update in the reply."""
        ends = np.cumsum([math.prod(shape) for _, _, shape, _ in self.layout])
        forged = iter(np.split(row, ends[:-1]))
        self.reply = messages.map_updates(
            self.reply, self.asked, lambda update: next(forged).reshape(update.shape)
        )


def stack(seen: Sequence[Seen]) -> NDArray[Any]:
    """Make a row of what each reply adds to the model; they forget it."""
    layout = seen[0].layout
    dtype = np.result_type(np.float32, *(kind for _, _, _, kind in layout))
    size = sum(math.prod(shape) for _, _, shape, _ in layout)
    rows = np.empty((len(seen), size), dtype)
    for row, reply in zip(rows, seen, strict=True):
        np.concatenate(reply.take(), out=row, casting="unsafe")
    return rows


class Colluders:
    """The malicious clients of a simulation, who act together.

    Parameters
    ----------
    attack : Attack | str
        What they do, or its spelling in a run-config.
    num_malicious_nodes : int | None
        How many they are: the first nodes that appear, in the order of their ids. If
        None, the nodes that mark their replies.
    seed : int
        Fixes all that the attack leaves to chance.
    aimed : bool (default: False)
        Whether `forge` will be told the rule, for attacks that need it.
    """

    def __init__(
        self,
        attack: Attack | str,
        num_malicious_nodes: int | None,
        seed: int,
        aimed: bool = False,
    ) -> None:
        self.attack = parse_attack(attack)
        if not aimed and any(part.needs_rule for part in parts(self.attack)):
            raise parameter_error(
                "attack",
                "aimed at a rule",
                str(self.attack),
                "Wrap a RobustStrategy, whose aggregator it is then aimed at.",
            )
        if num_malicious_nodes is not None and num_malicious_nodes < 0:
            raise parameter_error(
                "num_malicious_nodes", "0 or more", num_malicious_nodes
            )
        if seed < 0:
            raise parameter_error("seed", "0 or more", seed)
        self.num_malicious_nodes = num_malicious_nodes
        self.seed = seed
        self.nodes: set[int] = set()
        self._known: set[int] = set()

    def recruit(self, nodes: Iterable[int]) -> None:
        """Make the first nodes that appear malicious; the others stay honest."""
        for node in sorted(set(nodes) - self._known):
            self._known.add(node)
            if len(self.nodes) < (self.num_malicious_nodes or 0):
                self.nodes.add(node)

    def announce(self, asked: Message) -> None:
        """Let a client know that marks are awaited: colluders act on the server."""
        if self.num_malicious_nodes is not None:
            return
        configs = asked.content.config_records or {"config": ConfigRecord({})}
        content = RecordDict({**asked.content})
        for name, config in configs.items():
            content[name] = ConfigRecord({**config, ATTACKED: True})
        asked.content = content

    def meet(self, seen: Iterable[Seen]) -> None:
        """Learn from marks who is malicious."""
        if self.num_malicious_nodes is None:
            self.nodes |= {reply.node for reply in seen if reply.marked}

    def divide(self, seen: Iterable[P]) -> tuple[list[P], list[P]]:
        """Tell the honest from the malicious, both in the order of node ids.

        So an attack that picks a row picks the same client. What does not hold the same
        arrays as most do is neither.
        """
        ordered = sorted(seen, key=lambda one: one.node)
        layouts = Counter(one.layout for one in ordered if one.layout)
        usual = next((layout for layout, _ in layouts.most_common(1)), None)
        alike = [one for one in ordered if one.layout == usual]
        own = [one for one in alike if one.node in self.nodes]
        return [one for one in alike if one.node not in self.nodes], own

    def acts(self, server_round: int) -> Attack | None:
        """Give the attack of a round, if it is one that colluders mount together."""
        attack = self.attack.at(server_round, self._chance(server_round))
        return attack if isinstance(attack, Omniscient) else None

    def forge(
        self,
        server_round: int,
        honest: NDArray[Any],
        own: NDArray[Any],
        weights: NDArray[np.float64] | None = None,
        defence: tuple[Rule, int | float] | None = None,
    ) -> NDArray[Any]:
        """Make of all updates those that the malicious send; see `Attack.collude`.

        The defence is the rule in use, and the f that it is told in this round.

        In a round in which the attack cannot be mounted (the rule cannot work on so few
        rows, say) the log says so, and they are honest.
        """
        rng = self._chance(server_round)
        attack = self.attack.at(server_round, rng)
        if defence is not None:
            attack = attack.against(*defence)
        try:
            return attack.collude(honest, own, rng, weights)
        except ValueError as error:
            log(WARNING, "No attack in round %d. %s", server_round, error)
            return own

    def _chance(self, server_round: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, server_round])
