"""Replay: answer with the result of an earlier round."""

from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Context, Message

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = ["Replay"]


@dataclass(frozen=True)
class Replay(Attack, name="replay"):
    """Send the arrays of an earlier reply again.

    The client trains honestly every time, and sends the result of `delay` trainings
    before; until there is one so old, its first result. As the model itself is
    replayed, the update also undoes what was learnt in between.

    Parameters
    ----------
    delay : int (default: 5)
        Number of its own trainings by which the reply is late. At least 1.

    Raises
    ------
    ValueError
        If delay is below 1.

    Notes
    -----
    The client keeps the waiting replies, at most `delay` models, in `context.state`.

    Examples
    --------
    >>> Replay(delay=2)
    Replay(delay=2)
    """

    delay: int = 5

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.delay < 1:
            raise parameter_error("delay", "at least 1", self.delay)

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Train, append the result to the queue, and send the head of the queue."""
        reply = respond(message, context)
        if reply is None or not reply.has_content():
            return reply
        old: dict[str, messages.Record | None] = {}
        for name, arrays in reply.content.array_records.items():
            queue = [f"flwr-ctma.replay.{i}.{name}" for i in range(self.delay)]
            state = context.state.array_records
            waiting = [state[key] for key in queue if key in state]
            old[name] = waiting[0] if waiting else arrays
            waiting = [*waiting, arrays][-self.delay :]
            for key, record in zip(queue, waiting, strict=False):
                context.state[key] = ArrayRecord(dict(record))
        return messages.replace(reply, old)
