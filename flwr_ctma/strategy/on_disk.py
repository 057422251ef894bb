"""Replies that are more than memory holds."""

import mmap
import tempfile
import weakref
from collections.abc import Iterable
from logging import WARNING
from pathlib import Path

from flwr.app import Array, Message
from flwr.serverapp import Grid

from flwr_ctma.compat import log
from flwr_ctma.strategy.grace_period import GracePeriod, GracePeriodGrid

__all__ = ["OnDiskGrid"]

# `numpy.save` aligns numbers within its bytes to this.
_ALIGNMENT = 64
# Bytes of a file: many replies of a small model, or one of a larger one.
_SIZE = 2**28


class OnDiskGrid(GracePeriodGrid):
    """A Grid that puts each reply's arrays on disk before it pulls the next.

    What rules read of them is read block by block: n clients of d numbers take memory
    for one reply and a few vectors of d numbers. The system keeps as much of the files
    in memory as it has to spare.

    Parameters
    ----------
    grid : Grid
        The one to send and receive with.
    num_malicious_nodes : int | float
        As for `RobustStrategy`.
    folder : Path | str | None (default: None)
        On the disk to use, with room for a round's replies; None: the system's for
        temporary files. Files have no names there, and are gone with the last of the
        replies in them.
    grace_period : GracePeriod (default: GracePeriod())
        How long to wait for the last f replies.

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
    ) -> None:
        super().__init__(grid, num_malicious_nodes, grace_period)
        self.folder = folder
        self._disk: _Disk | None = None

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Pull replies one by one, and keep their arrays on disk."""
        replies: list[Message] = []
        for key in message_ids:
            for reply in super().pull_messages([key]):
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
        min_replies = sum(len(array.data) + _ALIGNMENT for array in arrays)
        if self._disk is None or self._disk.left < min_replies:
            self._disk = _Disk(self.folder, max(min_replies, _SIZE))
        views = [self._disk.write(array.data) for array in arrays]
        for array, view in zip(arrays, views, strict=True):
            array.data = view  # type: ignore[assignment]


class _Disk:
    """A file without a name that fills up, and is read where it is mapped.

    One map serves many replies: each holds a file handle, of which a process may often
    have no more than 1024.
    """

    def __init__(self, folder: Path | str | None, size: int) -> None:
        self.left = size
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._file.truncate(size)  # what is not written takes no room yet
        map_ = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        self._view = memoryview(map_)

    def write(self, data: bytes) -> memoryview:
        """Write bytes, and view them where they are."""
        end = start = len(self._view) - self.left
        while end - start < len(data):
            end += self._file.write(memoryview(data)[end - start :])
        room = -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(start + room)
        self.left -= room
        return self._view[start:end]


def _arrays(message: Message) -> list[Array]:
    if message.has_error():
        return []
    records = message.content.array_records.values()
    return [a for r in records for a in r.values() if isinstance(a.data, bytes)]
