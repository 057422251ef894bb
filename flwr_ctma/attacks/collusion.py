"""Colluders: who they are, what they see, and what they send in place of their own."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from logging import WARNING
from typing import Any, Protocol, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import (
    ATTACKED,
    MALICIOUS,
    Attack,
    Omniscient,
    Rule,
    iter_attacks,
    parse_attack,
)
from flwr_ctma.attacks.knowledge import Knowledge, Memory
from flwr_ctma.compat import log
from flwr_ctma.engine.threads import one_blas_thread
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import records_of

__all__ = ["Colluders", "Layout", "ObservedReply", "stack"]

Layout = tuple[tuple[str, str, tuple[int, ...], np.dtype[Any]], ...]
"""Record, name, shape and dtype of each array of an update."""


class _OfNode(Protocol):
    """An update of a node."""

    node: int

    @property
    def layout(self) -> Layout: ...


N = TypeVar("N", bound=_OfNode)


class ObservedReply:
    """A reply to training, as the attackers see it.

    Parameters
    ----------
    reply : Message
        The client's reply, with content.
    message : Message
        The message that it answers.
    sent : Sent | None (default: None)
        The arrays of the message, if they are known.
    """

    def __init__(
        self, reply: Message, message: Message, sent: messages.Sent | None = None
    ) -> None:
        self.node = message.metadata.dst_node_id
        self.marked = MALICIOUS in reply.content
        if self.marked:
            reply = messages.replace(reply, {MALICIOUS: None})
        self.reply, self.message = reply, message
        self.sent = messages.sent_numbers(message) if sent is None else sent

    @cached_property
    def layout(self) -> Layout:
        """Names, shapes and dtypes of the arrays of the update."""
        return tuple(
            (*name, array.shape, array.dtype) for name, array in self._arrays.items()
        )

    @cached_property
    def _arrays(self) -> dict[tuple[str, str], NDArray[Any]]:
        try:
            return messages.float_arrays(self.reply)
        except Exception:  # a malformed reply, in whatever way, is no update
            return {}

    @property
    def metrics(self) -> MetricRecord:
        """The metrics of the reply; empty unless they are in exactly one record."""
        records = list(records_of(self.reply.content, MetricRecord).values())
        return records[0] if len(records) == 1 else MetricRecord()

    @property
    def model(self) -> NDArray[Any]:
        """The model that the server sent, as a row in the layout of the update."""
        arrays = [
            messages.sent_array(self.sent, record, key, np.empty(shape, dtype)).ravel()
            for record, key, shape, dtype in self.layout
        ]
        return np.concatenate(arrays)

    def row(self, update: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return arrays by name as a row in the layout of the update; 0 elsewhere."""
        return np.concatenate(
            [
                update[key] if key in update else np.zeros(math.prod(shape))
                for _, key, shape, _ in self.layout
            ]
        )

    def write_update(self, row: NDArray[Any], model: NDArray[Any]) -> None:
        """Write the update as a row: the arrays less the model."""
        arrays = [array.ravel() for array in self._arrays.values()]
        # An attacker may well want the overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            np.concatenate(arrays, out=row, casting="unsafe")
            row -= model

    def replace_update(self, row: NDArray[Any]) -> None:
        """Put another update in the reply."""
        with np.errstate(over="ignore", invalid="ignore"):
            arrays = self.model + row
            ends = np.cumsum([math.prod(shape) for _, _, shape, _ in self.layout])
            pieces = zip(np.split(arrays, ends[:-1]), self.layout, strict=True)
            changed = {
                (record, key): piece.reshape(shape).astype(dtype, copy=False)
                for piece, (record, key, shape, dtype) in pieces
            }
        self.reply = messages.set_arrays(self.reply, changed)


def stack(replies: Sequence[ObservedReply]) -> NDArray[Any]:
    """Return the updates of replies as rows."""
    layout, sent, model = replies[0].layout, replies[0].sent, replies[0].model
    dtype = np.result_type(np.float32, *(kind for _, _, _, kind in layout))
    rows = np.empty((len(replies), model.size), dtype)
    for row, reply in zip(rows, replies, strict=True):
        if reply.sent is not sent:
            sent, model = reply.sent, reply.model
        reply.write_update(row, model)
    return rows


class Colluders:
    """The malicious clients of a simulation, who act together.

    Parameters
    ----------
    attack : Attack | str
        The attack, or its spelling in a run-config.
    num_malicious_nodes : int | None
        Number of malicious nodes: the first nodes that appear, in the order of their
        ids. If None, the nodes that mark their replies.
    seed : int
        Fixes, with the round, everything that the attack draws.
    aimed : bool (default: False)
        Whether `craft` gets the rule, for attacks that need it.
    """

    def __init__(
        self,
        attack: Attack | str,
        num_malicious_nodes: int | None,
        seed: int,
        aimed: bool = False,
    ) -> None:
        self.attack = parse_attack(attack)
        if not aimed and any(a.needs_rule for a in iter_attacks(self.attack)):
            raise parameter_error(
                "attack",
                "aimed at a rule",
                str(self.attack),
                "Wrap a RobustStrategy: the attack is then aimed at its aggregator.",
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
        self.memory: Memory = {}
        self._known: set[int] = set()

    def recruit(self, nodes: Iterable[int]) -> None:
        """Make the first nodes that appear malicious; the others stay honest."""
        nodes = set(nodes)
        if self._known.isdisjoint(nodes):  # a run resumed on new nodes
            self._known.clear()
            self.nodes.clear()
        for node in sorted(nodes - self._known):
            self._known.add(node)
            if len(self.nodes) < (self.num_malicious_nodes or 0):
                self.nodes.add(node)

    def announce(self, sent: Sequence[Message]) -> None:
        """Ask the clients for marks: colluders act on the server.

        Messages that share their content, as Flower's do, still share it.
        """
        if self.num_malicious_nodes is not None:
            return
        announced = {id(message.content): message.content for message in sent}
        for key, content in announced.items():
            configs = records_of(content, ConfigRecord) or {"config": ConfigRecord({})}
            announced[key] = RecordDict({**content})
            for name, config in configs.items():
                announced[key][name] = ConfigRecord({**config, ATTACKED: True})
        for message in sent:
            message.content = announced[id(message.content)]

    def register(self, replies: Iterable[ObservedReply]) -> None:
        """Add the nodes of marked replies to the malicious ones."""
        if self.num_malicious_nodes is None:
            self.nodes |= {reply.node for reply in replies if reply.marked}

    def divide(self, updates: Iterable[N]) -> tuple[list[N], list[N]]:
        """Return the honest and the malicious updates, both in the order of node ids.

        Because of the order, an attack that picks a row picks the same client in every
        round. Updates with other arrays than most have are in neither list.
        """
        ordered = sorted(updates, key=lambda update: update.node)
        layouts = Counter(update.layout for update in ordered if update.layout)
        usual = next((layout for layout, _ in layouts.most_common(1)), None)
        alike = [update for update in ordered if update.layout == usual]
        malicious = [update for update in alike if update.node in self.nodes]
        return [update for update in alike if update.node not in self.nodes], malicious

    def joint_attack(self, server_round: int) -> Attack | None:
        """Return the attack of a round if colluders mount it together, else None."""
        attack = self.attack.at(server_round, self._rng(server_round))
        return attack if isinstance(attack, Omniscient) else None

    @one_blas_thread()
    def craft(
        self,
        server_round: int,
        honest: NDArray[Any],
        malicious: NDArray[Any],
        weights: NDArray[np.float64] | None = None,
        defence: tuple[Rule, int | float] | None = None,
        model: NDArray[Any] | None = None,
        reference: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return what the malicious clients send in a round; see `Knowledge`.

        The defence is the rule in use, and the f that it is told in this round. If the
        attack is not possible in the round (because the rule cannot work on so few
        rows, for example), the log says so and the malicious clients are honest.
        """
        rng = self._rng(server_round)
        attack = self.attack.at(server_round, rng)
        if defence is not None:
            attack = attack.against(*defence)
        try:
            return attack.collude(
                Knowledge(
                    honest,
                    malicious,
                    rng,
                    weights,  # type: ignore[arg-type]
                    server_round,
                    model,
                    self.memory,
                    reference,
                )
            )
        except ValueError as error:
            log(WARNING, "No attack in round %d. %s", server_round, error)
            return malicious

    def state_dict(self) -> dict[str, Any]:
        """Return the malicious nodes and the attacks' memory, as plain data."""
        return {
            "nodes": sorted(self.nodes),
            "known": sorted(self._known),
            "memory": {name: dict(kept) for name, kept in self.memory.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.nodes, self._known = set(state["nodes"]), set(state["known"])
        self.memory = {name: dict(kept) for name, kept in state["memory"].items()}

    def _rng(self, server_round: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, server_round])
