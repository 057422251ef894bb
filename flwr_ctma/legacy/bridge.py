"""A strategy of Flower's former API, as one of the Message API."""

from collections.abc import Iterable, Sequence
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    Status,
)
from flwr.server import ClientManager
from flwr.server.strategy import Strategy
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from flwr_ctma.compat import ClientProxy, set_message_id
from flwr_ctma.legacy.records import claims_of, content_of, parameters_of, record_of

__all__ = ["Bridge"]

_Result = tuple[ClientProxy, FitRes | EvaluateRes]
_Failure = _Result | BaseException
_Instruction = tuple[ClientProxy, FitIns | EvaluateIns]

_OK = Status(Code.OK, "")


class Bridge(flower.Strategy):
    """A strategy of the former API, as one of the Message API.

    Attributes
    ----------
    instructions : list of (ClientProxy, FitIns | EvaluateIns)
        The last instructions of the strategy.
    loss, metrics
        The last results of its aggregation; None and empty if there were none.
    """

    def __init__(self, legacy: Strategy) -> None:
        self.legacy = legacy
        self.instructions: Sequence[_Instruction] = []
        self.loss: float | None = None
        self.metrics: dict[str, Scalar] = {}
        self._asked: dict[int, Message] = {}

    def prepare(self, parameters: Parameters, manager: ClientManager) -> Grid:
        """Keep the arguments of the next call that configures a round."""
        self._parameters, self._manager = parameters, manager
        return cast(Grid, _ConnectedNodes(manager))

    def summary(self) -> None:
        """Log nothing: strategies of the former API have no summary."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate; the first message holds the model that was sent."""
        instructions = self.legacy.configure_fit(
            server_round, self._parameters, self._manager
        )
        messages = self._messages(instructions, "train")
        if messages:
            messages[0].content["arrays"] = record_of(instructions[0][1].parameters)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        instructions = self.legacy.configure_evaluate(
            server_round, self._parameters, self._manager
        )
        return self._messages(instructions, "evaluate")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy see the robust reply as the result of a client."""
        (reply,) = replies
        _, count, metrics = claims_of(reply.content.metric_records["metrics"])
        robust = parameters_of(reply.content.array_records["arrays"])
        parameters, self.metrics = self.legacy.aggregate_fit(
            server_round, [(self._anyone, FitRes(_OK, robust, count, metrics))], []
        )
        return None if parameters is None else record_of(parameters), None

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the strategy see the robust metrics as those of a client."""
        (reply,) = replies
        loss, count, metrics = claims_of(reply.content.metric_records["metrics"])
        self.loss, self.metrics = self.legacy.aggregate_evaluate(
            server_round, [(self._anyone, EvaluateRes(_OK, loss, count, metrics))], []
        )
        return None

    def replies(
        self, results: Iterable[_Result], failures: Iterable[_Failure]
    ) -> list[Message]:
        """Return results and failures as replies to the messages."""
        self.loss, self.metrics = None, {}
        said = [*results, *(f for f in failures if isinstance(f, tuple))]
        return [
            Message(content_of(result), reply_to=self._asked[proxy.node_id])
            for proxy, result in said
            if proxy.node_id in self._asked
        ]

    def to(self, asked: Iterable[Message]) -> list[_Instruction]:
        """Return the instructions for the nodes that are asked."""
        nodes = {message.metadata.dst_node_id for message in asked}
        return [
            (proxy, what) for proxy, what in self.instructions if proxy.node_id in nodes
        ]

    def _messages(
        self, instructions: Sequence[_Instruction], kind: str
    ) -> list[Message]:
        """Return instructions as messages, with the ids that a Grid would write."""
        self.instructions = instructions
        self._asked = {}
        for proxy, _ in instructions:
            message = Message(RecordDict(), proxy.node_id, kind)
            set_message_id(message, str(proxy.node_id))
            self._asked[proxy.node_id] = message
        return list(self._asked.values())

    @property
    def _anyone(self) -> ClientProxy:
        return self.instructions[0][0]


class _ConnectedNodes:
    """The part of a Grid that lists the connected nodes."""

    def __init__(self, manager: ClientManager) -> None:
        self._manager = manager

    def get_node_ids(self) -> list[int]:
        return [proxy.node_id for proxy in self._manager.all().values()]
