"""The base of Grids that wrap another Grid."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.compat import Run

__all__ = ["GridWrapper"]


class GridWrapper(Grid):
    """A Grid that passes every call on to another; subclasses change some of them.

    Parameters
    ----------
    grid : Grid
        The Grid inside.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Run) -> None:
        """Set the information on the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """Information on the run."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message."""
        return self.grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are connected."""
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Return the nodes that are connected, with Flower's information on each."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages; return their ids."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to some messages that are there."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages; return their replies."""
        return self.grid.send_and_receive(messages, timeout=timeout)
