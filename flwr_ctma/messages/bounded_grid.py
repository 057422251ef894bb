"""A Grid on which one reply can cost neither the others' time nor the memory."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from flwr_ctma.compat import (
    AnnouncedReply,
    DecodeError,
    ErrorCode,
    announced_replies,
    error_reply,
    is_network_grid,
    is_simulation_grid,
    log,
)
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import records_of
from flwr_ctma.messages.reply_size import ReplyLimit, ReplySize
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.simulation.wrapper import GridWrapper

__all__ = [
    "REFUSED_REPLY",
    "UNDECODABLE",
    "BoundedGrid",
    "abandon_replies",
    "bound_replies",
    "sent_bytes",
    "stateful_grid",
]

# What Flower raises at content that a modified SuperNode can upload.
UNDECODABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    DecodeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)

# Code of the error reply in place of one that cannot be decoded or is too large.
# Flower's own codes are below 100.
REFUSED_REPLY = 1001

# Seconds for which a pull waits for small replies that have just been announced.
_FIRST_WAIT = 0.05
# Seconds between looks for an object that is not uploaded yet: the first, the longest.
_POLL, _LONGEST_POLL = 0.1, 3.0
# Seconds after which an upload that is not abandoned is lost, as in Flower.
_LONGEST_UPLOAD = 7200.0


class BoundedGrid(GridWrapper):
    """A Grid that bounds what each reply takes, and never waits for an upload.

    Flower's Grid of a deployment pulls one reply after another, waits up to two hours
    for objects that a node has announced and not uploaded, and inflates whatever the
    objects name. Here each reply is pulled by a thread of its own; `pull_messages`
    returns the replies that are complete. A reply that would take more memory than
    `reply_limit` is refused before it is inflated. One that cannot be decoded, or is
    refused, is replaced by an error reply with the code `REFUSED_REPLY` to the same
    message, so that it costs its sender's reply and no other.

    At most one thread pulls for each node, as a daemon. `abandon` ends those whose
    replies come too late.

    On other Grids replies are pulled by the caller's thread. What these inflate is not
    bounded: Flower's simulation and `InProcessGrid` hand replies over in memory.

    Parameters
    ----------
    grid : Grid
        The Grid to send and receive with.
    reply_limit : ReplyLimit (default: ReplyLimit())
        The memory that a reply may take.
    max_pulls : int | None (default: None)
        Replies that are pulled at the same time; None: all.

    Raises
    ------
    ValueError
        If max_pulls is below 1.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> grid = BoundedGrid(InProcessGrid(ClientApp(), 5), ReplyLimit(factor=2.0))
    >>> list(grid.get_node_ids())
    [2, 3, 4, 5, 6]
    """

    def __init__(
        self,
        grid: Grid,
        reply_limit: ReplyLimit = ReplyLimit(),  # noqa: B008, a frozen value
        max_pulls: int | None = None,
    ) -> None:
        super().__init__(grid)
        if not isinstance(reply_limit, ReplyLimit):
            raise parameter_error("reply_limit", "a `ReplyLimit`", reply_limit)
        if max_pulls is not None and max_pulls < 1:
            raise parameter_error("max_pulls", "at least 1", max_pulls)
        self.reply_limit = reply_limit
        self.max_pulls = max_pulls
        self._in_background = is_network_grid(grid)
        self._one_by_one = not _hands_over(grid)
        self._sent: dict[str, _Sent] = {}
        self._uploads: dict[str, _Upload] = {}
        self._threads: dict[int, threading.Thread] = {}  # by node

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Push messages, and remember how large each is."""
        messages = list(messages)
        keys = list(self.grid.push_messages(messages))
        if self._in_background:
            for key, message in zip(keys, messages, strict=False):
                if key:
                    node = message.metadata.dst_node_id
                    self._sent[key] = _Sent(node, sent_bytes([message]))
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are complete."""
        keys = list(message_ids)
        if not self._in_background:
            return list(self._pull_here(keys))
        unknown = [key for key in keys if key not in self._uploads]
        for reply in announced_replies(self.grid, unknown) if unknown else []:
            if reply.reply_to in unknown:
                largest = max((s.size for s in self._sent.values()), default=0)
                sent = self._sent.get(reply.reply_to, _Sent(0, largest))
                size = ReplySize(self.reply_limit.of(sent.size))
                upload = _Upload(reply, size, sent.node)
                self._uploads.setdefault(reply.reply_to, upload)
        self._start()
        wanted = [key for key in keys if key in self._uploads]
        last = time.monotonic() + _FIRST_WAIT
        replies = []
        for key in wanted:
            upload = self._uploads[key]
            if upload.done.wait(max(0.0, last - time.monotonic())):
                self._forget(key)
                replies += upload.result()
        self._start()
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages, and pull their replies until all are in or it is too late."""
        waiting = [key for key in self.push_messages(messages) if key]
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            found = self.pull_messages(waiting)
            replies += found
            answered = {reply.metadata.reply_to_message_id for reply in found}
            waiting = [key for key in waiting if key not in answered]
            left = 3.0 if end is None else end - time.monotonic()
            if not waiting or left <= 0:
                break
            time.sleep(min(left, 0.1 if found else 1.0))
        self.abandon(waiting)
        return replies

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Stop pulling the replies to these messages, and forget the messages."""
        for key in message_ids:
            upload = self._forget(key)
            if upload:
                upload.abandon()

    def _forget(self, key: str) -> "_Upload | None":
        self._sent.pop(key, None)
        return self._uploads.pop(key, None)

    def _start(self) -> None:
        """Start threads for announced replies, one for each node at most."""
        self._threads = {n: t for n, t in self._threads.items() if t.is_alive()}
        for upload in self._uploads.values():
            if self.max_pulls and len(self._threads) >= self.max_pulls:
                break
            if upload.started or upload.node in self._threads:
                continue
            upload.started = True
            thread = threading.Thread(target=upload.run, daemon=True)
            self._threads[upload.node] = thread
            thread.start()

    def _pull_here(self, keys: list[str]) -> Iterator[Message]:
        """Pull replies in this thread; replace those that cannot be decoded.

        Where one raises, it takes the replies with it that were pulled with it.
        """
        for batch in [[key] for key in keys] if self._one_by_one else [keys]:
            try:
                yield from self.grid.pull_messages(batch)
            except UNDECODABLE as error:
                self._one_by_one = True
                log(WARNING, "A reply cannot be decoded (%s).", type(error).__name__)
                yield from [_refused(key, error) for key in batch]


@dataclass(frozen=True)
class _Sent:
    """A message that was sent: to which node, and how many bytes of arrays."""

    node: int
    size: int


class _Upload:
    """A reply on its way: pulled in a thread, until it is there or abandoned."""

    def __init__(self, reply: AnnouncedReply, size: ReplySize, node: int) -> None:
        self.node = node
        self.started = False
        self.done = threading.Event()
        self._reply = reply
        self._size = size
        self._abandoned = threading.Event()
        self._end = 0.0
        self._pause = _POLL
        self._result: Callable[[], list[Message]] = list

    def run(self) -> None:
        """Pull the reply."""
        self._end = time.monotonic() + _LONGEST_UPLOAD
        try:
            replies = self._reply.pull(self)
            self._result = lambda: replies
        except UNDECODABLE as error:
            refused = _refused(self._reply.reply_to, error)
            self._result = lambda: [refused]
        except Exception as error:  # a connection that is lost: for the caller
            self._result = _raising(error)
        self.done.set()

    def result(self) -> list[Message]:
        """Return the reply, once it is done; raise what ended the pull."""
        return self._result()

    def abandon(self) -> None:
        """End the pull at the next object."""
        self._abandoned.set()

    def before_pull(self) -> None:
        """Raise if the pull is abandoned."""
        if self._abandoned.is_set():
            raise TimeoutError("the reply comes too late")

    def wait(self) -> bool:
        """Wait for an object that is not uploaded yet, ever longer."""
        self._pause = min(1.5 * self._pause, _LONGEST_POLL)
        return not self._abandoned.wait(self._pause) and time.monotonic() < self._end

    def add(self, object_id: str, content: bytes) -> None:
        """Count an object."""
        self._pause = _POLL
        self._size.add(object_id, content)

    def check(self, message_id: str) -> None:
        """Refuse a reply that is too large before it is inflated."""
        self._size.check(message_id)


def bound_replies(grid: Grid, reply_limit: ReplyLimit = ReplyLimit()) -> Grid:  # noqa: B008
    """Return a `BoundedGrid` around a Grid, or the Grid itself where it needs none.

    None is needed around Grids of Flower's simulation and of this project.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> grid = InProcessGrid(ClientApp(), 5)
    >>> bound_replies(grid) is grid
    True
    """
    return grid if _hands_over(grid) else BoundedGrid(grid, reply_limit)


def abandon_replies(grid: Grid, message_ids: Iterable[str]) -> None:
    """Stop pulling replies, on every `BoundedGrid` in a Grid."""
    keys = list(message_ids)
    for layer in _layers(grid):
        if isinstance(layer, BoundedGrid):
            layer.abandon(keys)


def sent_bytes(messages: Iterable[Message]) -> int:
    """Return the bytes in all arrays of some messages, whatever they hold."""
    return sum(
        len(array.data)
        for message in messages
        if message.has_content()
        for record in records_of(message.content, ArrayRecord).values()
        for array in record.values()
        if isinstance(array.data, bytes | memoryview)
    )


def stateful_grid(grid: Grid) -> Any | None:
    """Return the grid whose nodes are in this process and can be saved, or None.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> grid = InProcessGrid(ClientApp(), 5)
    >>> stateful_grid(BoundedGrid(grid)) is grid
    True
    """
    while isinstance(grid, BoundedGrid):  # keeps nothing that outlives its round
        grid = grid.grid
    return grid if hasattr(grid, "state_dict") else None


def _layers(grid: Any) -> Iterator[Grid]:
    """Yield a Grid and those inside."""
    while isinstance(grid, Grid):
        yield grid
        grid = vars(grid).get("grid")


def _hands_over(grid: Grid) -> bool:
    """Return whether a Grid hands replies over in memory, or bounds them itself."""
    kinds = (InProcessGrid, BoundedGrid)
    return any(isinstance(g, kinds) or is_simulation_grid(g) for g in _layers(grid))


def _refused(message_id: str, error: BaseException) -> Message:
    name = type(error).__name__
    # The server's own lack of memory proves nothing about the node.
    code = ErrorCode.UNKNOWN if isinstance(error, MemoryError) else REFUSED_REPLY
    return error_reply(message_id, code, f"cannot be decoded: {name}: {error}")


def _raising(error: Exception) -> Callable[[], list[Message]]:
    def result() -> list[Message]:
        raise error

    return result
