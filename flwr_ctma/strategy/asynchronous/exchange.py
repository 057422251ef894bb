"""A round in which nobody waits: work goes out, replies come in, and each is a step."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from flwr_ctma.aggregators import Aggregator
from flwr_ctma.compat import log
from flwr_ctma.messages.schema import Rejection, ReplySchema
from flwr_ctma.strategy.anytime import AnyTimeSGD
from flwr_ctma.strategy.asynchronous.contributions import Contributions
from flwr_ctma.strategy.asynchronous.pending import PendingMessage, PendingMessages
from flwr_ctma.strategy.asynchronous.statistics import RoundStatistics
from flwr_ctma.strategy.round.replies import read_one
from flwr_ctma.strategy.round.report import bytes_of

__all__ = ["Exchange", "clock"]

_TICK = 0.02  # seconds between looks for replies
_LOOK_AROUND = 1.0  # seconds between looks for nodes that came or went


@dataclass
class Exchange:
    """What goes to and fro between the server and its nodes in one round.

    Parameters
    ----------
    grid : Grid
    config : ConfigRecord
        That goes out with every message.
    step : AnyTimeSGD
    rule : Aggregator
    contributions : Contributions
        What clients have contributed, to which replies add.
    in_flight : InFlight
        Messages on their way, before the round and after it.
    arrays : ArrayRecord
        The model, a new one after each step.

    Attributes
    ----------
    tally : Tally
        Of what happened.
    """

    grid: Grid
    config: ConfigRecord
    step: AnyTimeSGD
    rule: Aggregator
    contributions: Contributions
    pending: PendingMessages
    arrays: ArrayRecord
    tally: RoundStatistics = field(init=False, default_factory=RoundStatistics)

    def __post_init__(self) -> None:
        self._model = ReplySchema(self.arrays)

    def run(self, goal: int | None, deadline: float) -> None:
        """Let replies come in until they are enough, or it is too late.

        As many as there are nodes are enough if no goal is given.
        """
        looked = -math.inf
        while True:
            if clock(self.grid) - looked >= _LOOK_AROUND:
                self.contributions.present = set(self.grid.get_node_ids())
                looked = clock(self.grid)
            self._give_work()
            # With no node connected it waits for one.
            enough = goal or len(self.contributions.present) or 1
            if self.tally.arrivals >= enough or clock(self.grid) >= deadline:
                break
            arrivals = self.tally.arrivals
            for flight, reply in self.pending.pull(self.grid):
                self._arrive(flight, reply)
                self._give_work()  # at once: idle nodes are time lost
            if self.tally.arrivals == arrivals and not hasattr(self.grid, "clock"):
                time.sleep(_TICK)
        self.tally.waiting = self.pending.nodes

    def _give_work(self) -> None:
        """Send the model to every node that has none on its way."""
        busy = self.pending.nodes | self.tally.resting()
        messages = []
        for node in sorted(self.contributions.present - busy):
            number = self.contributions.ask(node)
            record = RecordDict({self.step.arrayrecord_key: self.arrays})
            record[self.step.configrecord_key] = ConfigRecord(
                {**self.config, "server-round": number}
            )
            messages.append(Message(record, node, MessageType.TRAIN))
        lost = self.pending.push(
            self.grid, messages, self._model, self.contributions.steps
        )
        self.contributions.present -= lost  # until the next look around
        self.tally.sent += bytes_of(
            m for m in messages if m.metadata.dst_node_id not in lost
        )

    def _arrive(self, flight: PendingMessage, came: Message | Rejection | str) -> None:
        """Inspect a reply; if it is good, take a step."""
        tally, node = self.tally, flight.node
        if isinstance(came, Message):
            tally.received += bytes_of([came])
            reply = read_one(came, flight.model.read)
        else:
            reply = came
        if isinstance(reply, str):
            tally.failed.add(node)
            log(WARNING, "\t> Nothing from node %d: %s", node, reply)
        elif isinstance(reply, Rejection):
            tally.rejected[node] = reply.reason
            log(WARNING, "\t> Rejected the reply of node %d: %s", node, reply)
        else:
            tally.accepted.append(node)
            self.contributions.replace(node, flight.model, flight.step, reply)
            tally.steps += self.contributions.count(node) and self._take_step()

    def _take_step(self) -> bool:
        """Step along the robust average, if there is one."""
        average = self.contributions.average(self._model, self.rule)
        if average is None:
            return False
        self.arrays = self.step.step(self.arrays, self._model.write(average))
        self._model = ReplySchema(self.arrays)
        self.contributions.steps += 1
        return True


def clock(grid: Grid) -> float:
    """Seconds: on the clock of the grid, where it has its own."""
    now: Callable[[], float] = getattr(grid, "clock", time.monotonic)
    return now()
