"""Messages on their way: at most one for each node."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.messages.schema import Rejection, ReplySchema
from flwr_ctma.strategy.grace_period import UNDECODABLE

__all__ = ["PendingMessage", "PendingMessages"]


@dataclass(frozen=True)
class PendingMessage:
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
    model: ReplySchema
    step: int


class PendingMessages:
    """The book of all messages that are not answered yet.

    A reply belongs to the node that the message it answers was sent to; a reply to no
    message of the book is nobody's.
    """

    def __init__(self) -> None:
        self._flights: dict[str, PendingMessage] = {}
        self._lasts = False  # whether the grid can be saved, with what it carries
        self._one_by_one = False

    @property
    def nodes(self) -> set[int]:
        """Nodes that are busy."""
        return {flight.node for flight in self._flights.values()}

    def push(
        self, grid: Grid, messages: Sequence[Message], model: ReplySchema, step: int
    ) -> set[int]:
        """Send messages; give the nodes that they did not go out to."""
        self._lasts = hasattr(grid, "state_dict")
        if not messages:
            return set()
        pushed = set(grid.push_messages(messages))
        lost = set()
        for message in messages:
            key, node = message.metadata.message_id, message.metadata.dst_node_id
            if key in pushed:
                self._flights[key] = PendingMessage(node, model, step)
            else:  # gone since the grid was asked for its nodes
                lost.add(node)
        return lost

    def pull(
        self, grid: Grid
    ) -> Iterator[tuple[PendingMessage, Message | Rejection | str]]:
        """Give each reply that has come, with the message that it answers.

        Content that cannot be decoded raises in Flower, and takes the replies with it
        that were pulled with it. All that may be lost is given up; from then on replies
        are pulled one by one, and who sends such content is known.
        """
        keys = list(self._flights)
        for batch in [[key] for key in keys] if self._one_by_one else [keys]:
            try:
                replies = list(grid.pull_messages(batch))
            except UNDECODABLE as error:
                why = f"a reply cannot be decoded ({type(error).__name__})"
                lost = Rejection("undecodable", why) if self._one_by_one else why
                yield from [(self._flights.pop(key), lost) for key in batch]
                self._one_by_one = True
                continue
            for reply in replies:
                flight = self._flights.pop(reply.metadata.reply_to_message_id, None)
                if flight is not None:
                    yield flight, reply

    def state_dict(self) -> dict[str, Any] | None:
        """Give the book and the models in it; None where a crash ends all messages."""
        if not self._lasts:
            return None
        models = {id(f.model): f.model for f in self._flights.values()}
        place = {key: i for i, key in enumerate(models)}
        return {
            "models": [model.write({}) for model in models.values()],
            "flights": [
                (key, flight.node, place[id(flight.model)], flight.step)
                for key, flight in self._flights.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state_dict` gave; None leaves the book as it is."""
        if state is None:
            return
        models = [ReplySchema(arrays) for arrays in state["models"]]
        self._flights = {
            key: PendingMessage(node, models[i], step)
            for key, node, i, step in state["flights"]
        }
