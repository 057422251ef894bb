"""Messages on their way: at most one for each node."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.records import Model

__all__ = ["Flight", "InFlight"]


@dataclass(frozen=True)
class Flight:
    """A message on its way.

    Attributes
    ----------
    node : int
        Whom it was sent to.
    model : Model
        What was sent.
    step : int
        Of the server, that the model is from.
    """

    node: int
    model: Model
    step: int


class InFlight:
    """The book of all messages that are not answered yet.

    A reply belongs to the node that the message it answers was sent to; a reply to no
    message of the book is nobody's.
    """

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    @property
    def nodes(self) -> set[int]:
        """Nodes that are busy."""
        return {flight.node for flight in self._flights.values()}

    def push(
        self, grid: Grid, messages: Sequence[Message], model: Model, step: int
    ) -> set[int]:
        """Send messages; give the nodes that they did not go out to."""
        if not messages:
            return set()
        pushed = set(grid.push_messages(messages))
        lost = set()
        for message in messages:
            key, node = message.metadata.message_id, message.metadata.dst_node_id
            if key in pushed:
                self._flights[key] = Flight(node, model, step)
            else:  # gone since the grid was asked for its nodes
                lost.add(node)
        return lost

    def pull(self, grid: Grid) -> Iterator[tuple[Flight, Message]]:
        """Give each reply that has come, with the message that it answers."""
        for reply in list(grid.pull_messages(list(self._flights))):
            flight = self._flights.pop(reply.metadata.reply_to_message_id, None)
            if flight is not None:
                yield flight, reply
