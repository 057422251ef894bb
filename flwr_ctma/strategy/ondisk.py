"""Replies that are more than memory holds."""

import mmap
import tempfile
from collections.abc import Iterable
from logging import WARNING
from pathlib import Path

from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from flwr_ctma.strategy.patience import Patience, PatientGrid

__all__ = ["OnDiskGrid", "move_to_disk"]

# `numpy.save` aligns numbers within its bytes to this.
_ALIGNMENT = 64


class OnDiskGrid(PatientGrid):
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
        temporary files. Files have no names there, and are gone with their replies.
    patience : Patience (default: Patience())
        How long to wait for the last f replies.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from flwr_ctma.simulation import InProcessGrid
    >>> grid = OnDiskGrid(InProcessGrid(ClientApp(), 5), num_malicious_nodes=1)
    >>> list(grid.get_node_ids())
    [2, 3, 4, 5, 6]
    """

    def __init__(
        self,
        grid: Grid,
        num_malicious_nodes: int | float,
        folder: Path | str | None = None,
        patience: Patience = Patience(),  # noqa: B008, a frozen value
    ) -> None:
        super().__init__(grid, num_malicious_nodes, patience)
        self.folder = folder

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Pull replies one by one, and keep their arrays on disk."""
        replies: list[Message] = []
        for key in message_ids:
            for reply in super().pull_messages([key]):
                try:
                    move_to_disk(reply, self.folder)
                except OSError as error:
                    log(WARNING, "A reply stays in memory: %s", error)
                replies.append(reply)
        return replies


def move_to_disk(message: Message, folder: Path | str | None = None) -> None:
    """Replace the bytes of a message's arrays by views of a file without a name.

    Raises
    ------
    OSError
        If the file cannot be written: the message is as it was.
    """
    if message.has_error():
        return
    records = message.content.array_records.values()
    arrays = [a for r in records for a in r.values() if isinstance(a.data, bytes)]
    with tempfile.TemporaryFile(dir=folder) as file:
        spans = []
        for array in arrays:
            start = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.seek(start)
            file.write(array.data)
            spans.append(slice(start, start + len(array.data)))
        if not file.tell():
            return
        file.flush()
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for array, span in zip(arrays, spans, strict=True):
        array.data = view[span]  # type: ignore[assignment]
