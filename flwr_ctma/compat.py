"""Every name of Flower's that is not public API, in one place.

All other modules import public names alone: of `flwr.app`, `flwr.clientapp`,
`flwr.serverapp` and their documented subpackages, and of `flwr.common` and
`flwr.server` for the legacy API. The names below may move with any release of Flower:
`tests/test_compat.py` tries each of them on the version that is installed.
"""

import copy
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from flwr.app import Array, ArrayRecord, Error, Message, Metadata, RecordDict

# Not exported by flwr.app: builds a message from metadata that exist already.
from flwr.app.message.message import make_message

# Exceptions that `load_app` raises for each kind of app.
from flwr.clientapp.client_app import LoadClientAppError

# The type of the app that a mod wraps.
from flwr.clientapp.typing import ClientAppCallable

# Flower's own reading of pyproject.toml and of `--run-config`.
from flwr.common.config import flatten_dict, get_project_config, parse_config_args

# The node id of the server, and the codes of error replies.
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

# Messages and records as protobuf, which Flower sends and stores.
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

# The legacy API's clients, as its strategies see them.
from flwr.server.client_proxy import ClientProxy
from flwr.serverapp import Grid
from flwr.serverapp.server_app import LoadServerAppError

# Object trees: how the parts of a message are named and told apart.
# An object's type, the ids of its children and the length of its body.
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content as read_object_head,
)

# Loads the app that a reference such as `server.app:app` names.
from flwr.supercore.object_ref import load_app

# What `Grid.run` returns.
from flwr.supercore.run import Run

# Says which task this process is; without it no message can be created.
from flwr.supercore.task_identity import TaskIdentity

# Raised for bytes that are no protobuf.
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

__all__ = [
    "SUPERLINK_NODE_ID",
    "AnnouncedReply",
    "ClientAppCallable",
    "ClientProxy",
    "DecodeError",
    "ErrorCode",
    "LoadClientAppError",
    "LoadServerAppError",
    "ProtoMessage",
    "ProtoRecordDict",
    "PullObserver",
    "Run",
    "announced_replies",
    "copy_records",
    "error_reply",
    "flatten_dict",
    "get_project_config",
    "identify_server",
    "is_network_grid",
    "is_simulation_grid",
    "load_app",
    "log",
    "make_message",
    "make_record",
    "message_from_proto",
    "message_to_proto",
    "parse_config_args",
    "read_object_head",
    "recorddict_from_proto",
    "recorddict_to_proto",
    "set_message_id",
]

# The logger's name is documented (`FLWR_LOG_LEVEL`), `flwr.common.log` is not.
log = logging.getLogger("flwr").log


def set_message_id(message: Message, message_id: str) -> None:
    """Write the id of a message, which has a getter alone."""
    message.metadata.__dict__["_message_id"] = message_id


def identify_server(run_id: int, task_id: int) -> None:
    """Let this process create messages as the server of a run."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = task_id


def error_reply(message_id: str, code: int, reason: str) -> Message:
    """Build the reply to a message that the server puts in place of a lost one."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        message_type="system",
        group_id="",
        ttl=0,
        reply_to_message_id=message_id,
        created_at=time.time(),
    )
    return make_message(metadata, error=Error(code, reason))


# Named, not imported: their modules take half a second to load, and whoever holds such
# a grid has loaded its module.
_NETWORK_GRID = "flwr.superlink.grid.http_grid"
_SIMULATION_GRID = "flwr.superlink.grid.inmemory_grid"


def is_network_grid(grid: Grid) -> bool:
    """Return whether a grid is Flower's own of a deployment, `HttpGrid`."""
    return any(kind.__module__ == _NETWORK_GRID for kind in type(grid).__mro__)


def is_simulation_grid(grid: Grid) -> bool:
    """Return whether a grid is Flower's own of a simulation, `InMemoryGrid`."""
    return any(kind.__module__ == _SIMULATION_GRID for kind in type(grid).__mro__)


class PullObserver(Protocol):
    """What watches the pull of one reply, and may end it by raising."""

    def before_pull(self) -> None:
        """Is called before each request."""

    def wait(self) -> bool:
        """Wait a little for an object that is not uploaded yet; False to give up."""

    def add(self, object_id: str, content: bytes) -> None:
        """Is given each object."""

    def check(self, message_id: str) -> None:
        """Is called when all objects are there, before they are inflated."""


class AnnouncedReply:
    """A reply that a SuperLink knows of, and that is not pulled yet.

    `HttpGrid.pull_messages` asks the SuperLink for replies, pulls all objects of each
    reply in turn, confirms it and inflates it. Here a shallow copy of the grid does
    so for one reply, with a runtime client that watches every object.

    Attributes
    ----------
    reply_to : str
        Id of the message that is answered.
    object_ids : list of str
        The objects to pull, each once; the message itself last.
    """

    def __init__(self, grid: Grid, response: Any, position: int) -> None:
        message = response.messages_list[position]
        root = response.message_object_trees[position]
        self.reply_to: str = message.metadata.reply_to_message_id
        self.object_ids = _unique_ids(root)
        # One level, in which no object stands twice: Flower pulls an object as often
        # as the tree names it.
        tree = type(root)(object_id=root.object_id)
        for object_id in self.object_ids[:-1]:
            tree.children.add(object_id=object_id)
        self._response = type(response)(
            messages_list=[message], message_object_trees=[tree]
        )
        self._grid = grid

    def pull(self, observer: PullObserver) -> list[Message]:
        """Pull and inflate the reply, as `HttpGrid.pull_messages` does."""
        client = _OneReplyClient(_client(self._grid), self._response, observer)
        return list(_with_client(self._grid, client).pull_messages([self.reply_to]))


def announced_replies(grid: Grid, message_ids: Iterable[str]) -> list[AnnouncedReply]:
    """Return the replies that a SuperLink has, or is being sent, for some messages.

    The SuperLink names each reply once.
    """
    client = _AskingClient(_client(grid))
    _with_client(grid, client).pull_messages(list(message_ids))
    response = client.response
    if response is None:
        return []
    return [
        AnnouncedReply(grid, response, i) for i in range(len(response.messages_list))
    ]


def _client(grid: Any) -> Any:
    return grid._runtime_client  # connects if need be


def _with_client(grid: Grid, client: Any) -> Grid:
    """Return a copy of an `HttpGrid` that talks through another client."""
    view: Any = copy.copy(grid)
    view._client = client
    return view  # type: ignore[no-any-return]


def _unique_ids(root: Any) -> list[str]:
    """Return the ids in an object tree, children first, each once."""
    ids: dict[str, None] = {}
    stack = [root]
    while stack:
        tree = stack.pop()
        ids.setdefault(tree.object_id)
        stack.extend(tree.children)
    return list(reversed(ids))


def make_array(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    """Make an array without the checks of its constructor, which take 10 µs."""
    array = object.__new__(Array)
    vars(array).update(dtype=dtype, shape=shape, stype=stype, data=data)
    return array


def make_record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Make a record of arrays without the checks of its constructor: 15 µs an array."""
    record = ArrayRecord()
    vars(record)["_data"].update(arrays)
    return record


def copy_arrays(record: ArrayRecord) -> ArrayRecord:
    """Copy a record and its arrays; the payloads are shared."""
    copied = record.copy()
    arrays: dict[str, Array] = vars(copied)["_data"]
    for name, a in arrays.items():
        arrays[name] = make_array(a.dtype, a.shape, a.stype, a.data)
    return copied


def copy_records(records: RecordDict) -> RecordDict:
    """Copy records, their arrays and lists; payloads, which are bytes, are shared."""
    copied = records.copy()
    content: dict[str, Any] = vars(copied)["_data"]
    for name, record in content.items():
        content[name] = _copy_record(record)
    return copied


def _copy_record(record: Any) -> Any:
    if isinstance(record, ArrayRecord):
        return copy_arrays(record)
    copied = record.copy()
    values: dict[str, Any] = vars(copied)["_data"]
    for key, value in values.items():
        if type(value) is list:
            values[key] = value.copy()
    return copied


class _AskingClient:
    """A runtime client that asks which replies there are, and pulls none."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.response: Any = None

    def PullMessages(self, request: Any) -> Any:
        self.response = self._client.PullMessages(request)
        return type(self.response)()


class _OneReplyClient:
    """A runtime client that knows one reply, and lets its objects be watched."""

    def __init__(self, client: Any, response: Any, observer: PullObserver) -> None:
        self._client = client
        self._response = response
        self._observer = observer

    def PullMessages(self, request: Any) -> Any:
        return self._response

    def PullObject(self, request: Any) -> Any:
        while True:
            self._observer.before_pull()
            response = self._client.PullObject(request)
            if not response.object_found:
                return response
            if response.object_available:
                self._observer.add(request.object_id, response.object_content)
                return response
            if not self._observer.wait():
                return response

    def ConfirmMessageReceived(self, request: Any) -> Any:
        # First, so that the SuperLink drops what is refused as well.
        answer = self._client.ConfirmMessageReceived(request)
        self._observer.check(request.message_object_id)
        return answer
