"""Rounds whose replies take more room than memory has."""

import mmap
import tempfile
import weakref
from collections.abc import Iterable
from logging import WARNING
from pathlib import Path

from flwr.app import Array, Message
from flwr.serverapp import Grid

from flwr_ctma.compat import log
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.strategy.grace_period import GracePeriod, GracePeriodGrid

__all__ = ["OnDiskGrid"]

# `numpy.save` aligns numbers within its bytes to this.
_ALIGNMENT = 64
# Bytes of a file: many replies of a small model, or one of a larger one.
_SIZE = 2**28


class OnDiskGrid(GracePeriodGrid):
    """A Grid that writes each reply's arrays to disk before it returns the next.

    Rules read the files block by block: n clients of d numbers take memory for a few
    replies and a few vectors of d numbers. The system keeps as much of the files in
    memory as it has to spare. Replies of a model of at most 1 MiB in several arrays are
    copied to memory, unless the rule is `lasa` or `layerwise`.

    In a deployment f + 2 replies are pulled at the same time, so that f uploads that
    are withheld do not hold up the others.

    Parameters
    ----------
    grid : Grid
        The Grid to send and receive with.
    num_malicious_nodes : int | float
        As for `RobustStrategy`.
    folder : Path | str | None (default: None)
        A folder on the disk to use, with room for a round's replies; None: the system's
        folder for temporary files. The files have no names there, and are gone with the
        last of the replies in them.
    grace_period : GracePeriod (default: GracePeriod())
        How long to wait for the last f replies.
    reply_limit : ReplyLimit (default: ReplyLimit())
        The memory that a reply may take.

    Raises
    ------
    ValueError
        If a parameter is of another type, or out of range.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from flwr_ctma.simulation.grid import InProcessGrid
    >>> grid = OnDiskGrid(InProcessGrid(ClientApp(), 5), num_malicious_nodes=1)
    >>> list(grid.get_node_ids())
    [2, 3, 4, 5, 6]
    """

    def __init__(
        self,
        grid: Grid,
        num_malicious_nodes: int | float,
        folder: Path | str | None = None,
        grace_period: GracePeriod = GracePeriod(),  # noqa: B008, a frozen value
        *,
        reply_limit: ReplyLimit = ReplyLimit(),  # noqa: B008, a frozen value
    ) -> None:
        super().__init__(
            grid, num_malicious_nodes, grace_period, reply_limit=reply_limit
        )
        self.folder = folder
        self._disk: _Disk | None = None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages, and pull replies until the grace period is over."""
        messages = list(messages)
        if messages:
            self.max_pulls = self._spare(len(messages)) + 2
        return super().send_and_receive(messages, timeout=timeout)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Pull replies, and keep their arrays on disk."""
        keys = list(message_ids)
        # In this thread one by one, so that only one is in memory.
        batches = [keys] if self._in_background else [[key] for key in keys]
        replies: list[Message] = []
        for batch in batches:
            for reply in super().pull_messages(batch):
                try:
                    self._move(reply)
                except OSError as error:
                    self._disk = None
                    log(WARNING, "A reply stays in memory: %s", error)
                replies.append(reply)
        return replies

    def _move(self, message: Message) -> None:
        """Replace the bytes of a message's arrays by views of a file."""
        arrays = _arrays(message)
        if not arrays:
            return
        room = sum(len(array.data) + _ALIGNMENT for array in arrays)
        if self._disk is None or self._disk.left < room:
            self._disk = _Disk(self.folder, max(room, _SIZE))
        views = [self._disk.write(array.data) for array in arrays]
        for array, view in zip(arrays, views, strict=True):
            array.data = view  # type: ignore[assignment]


class _Disk:
    """A file without a name that is written once and read through a memory map.

    One map serves many replies: each map holds a file handle, and a process may often
    have no more than 1024 of them.
    """

    def __init__(self, folder: Path | str | None, size: int) -> None:
        self.left = size
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._file.truncate(size)  # takes no room until it is written
        map_ = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        self._view = memoryview(map_)

    def write(self, data: bytes) -> memoryview:
        """Write bytes, and return a view of them in the file."""
        end = start = len(self._view) - self.left
        while end - start < len(data):
            end += self._file.write(memoryview(data)[end - start :])
        room = -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(start + room)
        self.left -= room
        return self._view[start:end]


def _arrays(message: Message) -> list[Array]:
    """Return the arrays of a message, each once, however often records name it."""
    if message.has_error():
        return []
    records = message.content.array_records.values()
    arrays = {id(array): array for record in records for array in record.values()}
    return [array for array in arrays.values() if isinstance(array.data, bytes)]
