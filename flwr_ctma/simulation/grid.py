"""Flower's Grid in one process: the same apps, without Ray, processes or a network."""

import copy
import dataclasses
import threading
import traceback
from collections.abc import Iterable, Mapping
from logging import ERROR
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from numpy.typing import NDArray

from flwr_ctma.compat import (
    SUPERLINK_NODE_ID,
    ErrorCode,
    ProtoMessage,
    ProtoRecordDict,
    Run,
    copy_records,
    identify_server,
    log,
    make_message,
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
    set_message_id,
)
from flwr_ctma.errors import parameter_error

__all__ = ["InProcessGrid", "from_bytes", "to_bytes"]

_RUN_ID = 1
_TASK_ID = 1
_FIRST_NODE_ID = SUPERLINK_NODE_ID + 1


class InProcessGrid(Grid):
    """A Grid that calls the ClientApp directly, one node after the other.

    Node i has partition i, as in Flower's simulation, and a `context.state` that lives
    as long as the grid. Records are copied on the way, so that neither side can change
    the other's. A ClientApp that raises causes an error reply, and its context stays as
    it was; a ClientApp that returns None causes no reply. Replies come at once, in the
    order of the messages; a timeout has no effect.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_nodes : int
        The number of nodes, each with its own partition.
    run_config : UserConfig | None (default: None)
        The `context.run_config` of the clients.

    Raises
    ------
    ValueError
        If num_nodes is below 1, or a message goes to an unknown node.

    Notes
    -----
    Flower lets a process create messages only once it has a task. Creating the grid
    gives it one: create the grid before the first message.

    Examples
    --------
    >>> from flwr.app import MetricRecord
    >>> app = ClientApp()
    >>> @app.query()
    ... def where(message, context):
    ...     metrics = MetricRecord({"partition": context.node_config["partition-id"]})
    ...     return Message(RecordDict({"metrics": metrics}), reply_to=message)
    >>> grid = InProcessGrid(app, num_nodes=3)
    >>> asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    >>> [m.content["metrics"]["partition"] for m in grid.send_and_receive(asked)]
    [0, 1, 2]
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: UserConfig | None = None,
    ) -> None:
        if num_nodes < 1:
            raise parameter_error("num_nodes", "at least 1", num_nodes)
        self._client_app = client_app
        self._run = Run.create_empty(_RUN_ID)
        self._contexts = {
            node_id: Context(
                run_id=_RUN_ID,
                node_id=node_id,
                node_config={"partition-id": partition, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for partition in range(num_nodes)
            for node_id in [_FIRST_NODE_ID + partition]
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0
        self._one_at_a_time = threading.Lock()  # Flower's former server has threads
        identify_server(_RUN_ID, _TASK_ID)

    def set_run(self, run: Run) -> None:
        """Set the run information."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run information."""
        return copy.copy(self._run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; Flower prefers `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the node ids, in the order of the partitions."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let the clients answer, one message after the other."""
        pushed = []
        for message in messages:
            with self._one_at_a_time:
                message_id = self._number(message)
                self._keep(message_id, self._answer(message))
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies, each once, in the order of the ids."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push the messages and pull their replies."""
        return self.pull_messages(self.push_messages(messages))

    def close(self) -> None:
        """End processes that the grid started: none here."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: contexts and unpulled replies.

        Records and messages are in Flower's own bytes.
        """
        kept = [context.state for context in self._contexts.values()]
        return {
            "sent": self._sent,
            "kept": [_bytes(recorddict_to_proto(records)) for records in kept],
            "replies": {key: to_bytes(reply) for key, reply in self._replies.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        ValueError
            If the state has another number of nodes.
        """
        kept = state["kept"]
        if len(kept) != len(self._contexts):
            raise parameter_error(
                "grid", f"of {len(kept)} nodes, as saved", len(self._contexts)
            )
        self._sent = state["sent"]
        self._replies = {
            key: from_bytes(data) for key, data in state["replies"].items()
        }
        for context, data in zip(self._contexts.values(), kept, strict=True):
            proto = ProtoRecordDict.FromString(data.tobytes())
            context.state = recorddict_from_proto(proto)

    def _number(self, message: Message) -> str:
        """Write an id into a message to one of the nodes; return it."""
        node_id = message.metadata.dst_node_id
        if node_id not in self._contexts:
            raise parameter_error(
                "dst_node_id", f"one of {self.get_node_ids()}", node_id
            )
        self._sent += 1
        message_id = str(self._sent)
        set_message_id(message, message_id)
        return message_id

    def _keep(self, message_id: str, reply: Message | None) -> None:
        if reply is not None:
            set_message_id(reply, f"reply-{message_id}")
            self._replies[message_id] = reply

    def _answer(self, message: Message) -> Message | None:
        node_id = message.metadata.dst_node_id
        before = self._contexts[node_id]
        context = dataclasses.replace(
            before,
            state=_copy(before.state),
            node_config=dict(before.node_config),
            run_config=dict(before.run_config),
        )
        received = make_message(copy.copy(message.metadata), _copy(message.content))
        try:
            answer = self._client_app(received, context)
            if answer is not None:
                # A new message, so that no client answers in the name of another.
                if answer.has_error():
                    answer = Message(answer.error, reply_to=message)
                else:
                    answer = Message(_copy(answer.content), reply_to=message)
        except (Exception, SystemExit) as error:
            log(ERROR, "Node %d: %s", node_id, traceback.format_exc())
            reason = f"{type(error)}:<'{error}'>"
            failure = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            return Message(failure, reply_to=message)
        self._contexts[node_id] = context
        return answer


def _copy(records: RecordDict) -> RecordDict:
    """Copy the structure and share the payloads, which are immutable bytes.

    Fails, as sending would, for an array whose payload is anything but bytes.
    """
    for record in records.values():
        if isinstance(record, ArrayRecord):
            for name, array in record.items():
                if not isinstance(array.data, bytes):
                    raise TypeError(f"The data of {name} are not bytes")
    return copy_records(records)


def to_bytes(message: Message) -> NDArray[np.uint8]:
    """Return a message as bytes; `from_bytes` reads them.

    Examples
    --------
    >>> grid = InProcessGrid(ClientApp(), num_nodes=1)
    >>> message = Message(RecordDict(), grid.get_node_ids()[0], "query")
    >>> from_bytes(to_bytes(message)).metadata.message_type
    'query'
    """
    return _bytes(message_to_proto(message))


def from_bytes(data: NDArray[np.uint8]) -> Message:
    """Return the message that `to_bytes` wrote."""
    return message_from_proto(ProtoMessage.FromString(data.tobytes()))


def _bytes(proto: Any) -> NDArray[np.uint8]:
    return np.frombuffer(proto.SerializeToString(), np.uint8)
