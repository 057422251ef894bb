"""One round of asynchronous training: messages out, replies in, a step at each."""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flwr_ctma.aggregators import Aggregator
from flwr_ctma.aggregators.base import is_by_layer
from flwr_ctma.compat import log
from flwr_ctma.messages.bounded_grid import sent_bytes
from flwr_ctma.messages.schema import Rejection, ReplySchema
from flwr_ctma.strategy.anytime import AnyTimeSGD
from flwr_ctma.strategy.asynchronous.clients import ClientUpdates
from flwr_ctma.strategy.asynchronous.pending import PendingMessage, PendingMessages
from flwr_ctma.strategy.asynchronous.statistics import RoundStatistics
from flwr_ctma.strategy.round.replies import read_one

__all__ = ["AsyncRound", "clock"]

_POLL_SECONDS = 0.02  # between looks for replies
_NODES_SECONDS = 1.0  # between looks for nodes that came or left


@dataclass
class AsyncRound:
    """The messages and replies of one round, and the steps that they cause.

    Parameters
    ----------
    grid : Grid
    config : ConfigRecord
        What goes out with every message.
    step : AnyTimeSGD
    rule : Aggregator
    clients : ClientUpdates
        The latest update of every client, to which replies add.
    pending : PendingMessages
        Messages that are not answered yet, before the round and after it.
    arrays : ArrayRecord
        The model; a new one after each step.
    constant_keys : Collection[str] (default: ())
        Arrays that no client trains, as for `ReplySchema`. No step sees them.
    suspects : sequence of int (default: ())
        Nodes to exclude, the first ones first: as many of those that are connected as
        `ClientUpdates.to_exclude` allows.

    Attributes
    ----------
    statistics : RoundStatistics
    """

    grid: Grid
    config: ConfigRecord
    step: AnyTimeSGD
    rule: Aggregator
    clients: ClientUpdates
    pending: PendingMessages
    arrays: ArrayRecord
    constant_keys: Collection[str] = ()
    suspects: Sequence[int] = ()
    statistics: RoundStatistics = field(init=False, default_factory=RoundStatistics)

    def __post_init__(self) -> None:
        self._model = self._schema()
        self.clients.check_resumed(self._model)

    def run(self, goal: int | None, deadline: float) -> None:
        """Run until enough updates are counted, or until the deadline.

        Without a goal as many updates are enough as nodes are connected. The round ends
        as well when no message is pending and the nodes have to rest until the next.
        """
        looked = -math.inf
        told = False
        while True:
            if clock(self.grid) - looked >= _NODES_SECONDS:
                self._look_for_nodes()
                looked = clock(self.grid)
            self._send_work()
            # Without any node connected the round waits for one.
            enough = goal or len(self.clients.present) or 1
            if self.statistics.counted >= enough or clock(self.grid) >= deadline:
                break
            if self.statistics.resting() and not self.pending.nodes:
                break
            if not told and self.clients.all_above_cap():
                log(INFO, "Waiting: %s.", self.clients.why_no_step())
                told = True
            arrivals = self.statistics.arrivals
            for message, reply in self.pending.pull(self.grid):
                self._receive(message, reply)
                self._send_work()  # at once: idle nodes are time lost
            if self.statistics.arrivals == arrivals and not hasattr(self.grid, "clock"):
                time.sleep(_POLL_SECONDS)
        self.statistics.waiting = self.pending.nodes

    def _look_for_nodes(self) -> None:
        connected = set(self.grid.get_node_ids())
        excluded = self.clients.to_exclude(self.suspects, connected)
        self.statistics.excluded = excluded
        self.clients.forget(excluded)  # a node that appeals starts anew
        forgotten = self.clients.set_present(connected - excluded)
        self.pending.drop(self.grid, forgotten | excluded)

    def _send_work(self) -> None:
        """Send the model to every node that has nothing to do and may have work."""
        busy = self.pending.nodes | self.statistics.resting()
        idle = self.clients.present - busy
        messages = []
        for node in sorted(idle - self.clients.above_cap() if idle else idle):
            number = self.clients.ask(node)
            record = RecordDict({self.step.arrayrecord_key: self.arrays})
            record[self.step.configrecord_key] = ConfigRecord(
                {**self.config, "server-round": number}
            )
            messages.append(Message(record, node, MessageType.TRAIN))
        lost = self.pending.push(self.grid, messages, self._model, self.clients.steps)
        self.clients.present -= lost  # until the next look
        self.statistics.sent += sent_bytes(
            m for m in messages if m.metadata.dst_node_id not in lost
        )

    def _receive(self, sent: PendingMessage, came: Message) -> None:
        """Inspect a reply; if it is good, take a step."""
        statistics, node = self.statistics, sent.node
        if node not in self.clients.present:
            statistics.failed.add(node)
            log(WARNING, "\t> Dropped the reply of node %d, which has left", node)
            return
        statistics.received += sent_bytes([came])
        reply = read_one(came, sent.model.read)
        if isinstance(reply, str):
            statistics.failed.add(node)
            log(WARNING, "\t> Nothing from node %d: %s", node, reply)
        elif isinstance(reply, Rejection):
            statistics.rejected[node] = reply.reason
            log(WARNING, "\t> Rejected the reply of node %d: %s", node, reply)
        else:
            statistics.accepted.append(node)
            self.clients.replace(node, sent.model, sent.step, reply)
            if self.clients.count(node):
                statistics.counted += 1
                statistics.steps += self._take_step()

    def _take_step(self) -> bool:
        """Step along the robust average, if there is one."""
        average = self.clients.average(self._model, self.rule)
        if average is None:
            return False
        stepped = self.step.step(
            self._trained(self.arrays), self._trained(self._model.write(average))
        )
        self.arrays = ArrayRecord({**self.arrays, **stepped})
        self._model = self._schema()
        self.clients.steps += 1
        return True

    def _schema(self) -> ReplySchema:
        return ReplySchema(
            self.arrays,
            constant_keys=self.constant_keys,
            by_layer=is_by_layer(self.rule),
        )

    def _trained(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the arrays that are no constants."""
        if not self.constant_keys:
            return arrays
        return ArrayRecord(
            {
                key: array
                for key, array in arrays.items()
                if key.rpartition(".")[2] not in self.constant_keys
            }
        )


def clock(grid: Grid) -> float:
    """Return the seconds on the grid's own clock, or the system's if it has none."""
    now: Callable[[], float] = getattr(grid, "clock", time.monotonic)
    return now()
