"""Colluding attackers in asynchronous training."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Attack
from flwr_ctma.attacks.collusion import Colluders, Layout, ObservedReply, stack
from flwr_ctma.attacks.messages import server_round
from flwr_ctma.messages.bounded_grid import bound_replies
from flwr_ctma.simulation.wrapper import GridWrapper

__all__ = ["AttackedGrid"]


class AttackedGrid(GridWrapper):
    """A Grid that replaces the replies of malicious clients, which see all others.

    For `AsyncRobustStrategy` and other strategies that pull replies as they come. The
    attack sees the latest update of every client, weighted by the number of its
    updates. In synchronous rounds use `AttackedStrategy`.

    Parameters
    ----------
    grid : Grid
        The Grid to send and receive with.
    attack : Attack | str
        The colluders' attack. Optimal attacks must be aimed at a rule first:
        `OptimalALIE().against(rule, f)`.
    num_malicious_nodes : int | None (default: None)
        As for `AttackedStrategy`.
    seed : int (default: 0)
        Seed of the attack's random numbers, together with the number of the reply.

    Notes
    -----
    Colluders know the counts, and not the weights of a strategy that caps counts or
    weighs by age.
    """

    def __init__(
        self,
        grid: Grid,
        attack: Attack | str,
        num_malicious_nodes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(bound_replies(grid))
        self.colluders = Colluders(attack, num_malicious_nodes, seed)
        self._asked: dict[str, Message] = {}
        self._latest: dict[int, _Latest] = {}
        self._counts: Counter[int] = Counter()

    def __getattr__(self, name: str) -> Any:
        """Return other attributes of the grid inside, such as its clock; no state."""
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages, and remember those that ask for training."""
        sent = list(messages)
        training = [m for m in sent if m.metadata.message_type.startswith("train")]
        self.colluders.recruit(self.grid.get_node_ids())
        self.colluders.announce(training)
        ids = list(self.grid.push_messages(sent))
        for key, message in zip(ids, sent, strict=True):
            if message in training:
                self._asked[key] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies; those of malicious clients are replaced."""
        replies = list(self.grid.pull_messages(message_ids))
        seen = {}
        for i, reply in enumerate(replies):
            asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None and reply.has_content():
                seen[i] = ObservedReply(reply, asked)
                self._note(seen[i])
        for i, one in seen.items():
            self._collude(one)
            replies[i] = one.reply
        return replies

    def _note(self, one: ObservedReply) -> None:
        """Keep what a client would have sent, honestly, as its latest."""
        self.colluders.register([one])
        if one.layout:
            self._counts[one.node] += 1
            update = stack([one])[0]
            self._latest[one.node] = _Latest(one.node, one.layout, update)

    def _collude(self, one: ObservedReply) -> None:
        number = server_round(one.message) or 0
        honest, own = self.colluders.divide(self._latest.values())
        nodes = [latest.node for latest in own]
        if (
            one.node not in nodes
            or not honest
            or not self.colluders.joint_attack(number)
        ):
            return
        model = one.model
        rows = self.colluders.craft(
            number,
            np.stack([latest.update for latest in honest]),
            np.stack([latest.update for latest in own]),
            np.array([self._counts[latest.node] for latest in (*honest, *own)], float),
            model=model,
        )
        one.replace_update(rows[nodes.index(one.node)])


@dataclass
class _Latest:
    node: int
    layout: Layout
    update: NDArray[Any]
