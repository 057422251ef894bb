"""Messages that are not answered yet: at most one for each node."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.messages.bounded_grid import abandon_replies, stateful_grid
from flwr_ctma.messages.schema import ReplySchema

__all__ = ["PendingMessage", "PendingMessages"]


@dataclass(frozen=True)
class PendingMessage:
    """A message that is not answered yet.

    Attributes
    ----------
    node : int
        The node that it was sent to.
    model : ReplySchema
        The model that was sent.
    step : int
        The server's step that the model is from.
    """

    node: int
    model: ReplySchema
    step: int


class PendingMessages:
    """All messages that are not answered yet, by message id.

    A reply belongs to the node that the answered message was sent to, whatever the
    reply says of its source. A reply to any other message is ignored.

    Parameters
    ----------
    constant_keys : Collection[str] (default: ())
        As for `ReplySchema`.
    by_layer : bool (default: False)
        As for `ReplySchema`.
    """

    def __init__(
        self, constant_keys: Collection[str] = (), by_layer: bool = False
    ) -> None:
        self._constant_keys, self._by_layer = constant_keys, by_layer
        self._messages: dict[str, PendingMessage] = {}
        self._survives = False  # whether the grid saves the messages that it carries

    @property
    def nodes(self) -> set[int]:
        """Nodes that are busy."""
        return {message.node for message in self._messages.values()}

    def push(
        self, grid: Grid, messages: Sequence[Message], model: ReplySchema, step: int
    ) -> set[int]:
        """Send messages; return the nodes that they could not be sent to."""
        self._survives = stateful_grid(grid) is not None
        if not messages:
            return set()
        pushed = set(grid.push_messages(messages))
        lost = set()
        for message in messages:
            key, node = message.metadata.message_id, message.metadata.dst_node_id
            if key in pushed:
                self._messages[key] = PendingMessage(node, model, step)
            else:  # the node has left since the grid was asked for its nodes
                lost.add(node)
        return lost

    def pull(self, grid: Grid) -> Iterator[tuple[PendingMessage, Message]]:
        """Yield each reply that has come, with the message that it answers."""
        for reply in list(grid.pull_messages(list(self._messages))):
            message = self._messages.pop(reply.metadata.reply_to_message_id, None)
            if message is not None:
                yield message, reply

    def drop(self, grid: Grid, nodes: Collection[int]) -> None:
        """Give up the messages to some nodes."""
        keys = [key for key, sent in self._messages.items() if sent.node in nodes]
        for key in keys:
            del self._messages[key]
        if keys:
            abandon_replies(grid, keys)

    def abandon(self, grid: Grid) -> None:
        """Stop pulling replies, at the end of a run."""
        abandon_replies(grid, self._messages)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the messages and their models; None where a crash ends them all."""
        if not self._survives:
            return None
        models = {id(sent.model): sent.model for sent in self._messages.values()}
        position = {key: i for i, key in enumerate(models)}
        return {
            "models": [model.write({}) for model in models.values()],
            "messages": [
                (key, sent.node, position[id(sent.model)], sent.step)
                for key, sent in self._messages.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` returned; None leaves the messages as they are."""
        if state is None:
            return
        models = [
            ReplySchema(
                arrays, constant_keys=self._constant_keys, by_layer=self._by_layer
            )
            for arrays in state["models"]
        ]
        self._messages = {
            key: PendingMessage(node, models[i], step)
            for key, node, i, step in state["messages"]
        }
