"""Replay: answer today with what was true some rounds ago."""

from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Context, Message

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = ["Replay"]


@dataclass(frozen=True)
class Replay(Attack):
    """Send the arrays of an earlier reply again.

    The client trains honestly every time and answers with what it had computed `delay`
    trainings before; with its first result as long as it has none so old. The model
    itself is replayed, so its update also undoes what was learnt since.

    Parameters
    ----------
    delay : int (default: 5)
        How many of its own trainings the reply is behind. At least 1.

    Raises
    ------
    ValueError
        If delay is below 1.

    Notes
    -----
    The waiting replies, at most `delay` models, are kept in `context.state`.
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
        """Train, put the result at the end of the queue, send its head."""
        reply = respond(message, context)
        if reply is None or not reply.has_content():
            return reply
        old: dict[str, messages.Record | None] = {}
        for name, arrays in reply.content.array_records.items():
            queue = [f"flwr-ctma.stale.{i}.{name}" for i in range(self.delay)]
            state = context.state.array_records
            waiting = [state[key] for key in queue if key in state]
            old[name] = waiting[0] if waiting else arrays
            waiting = [*waiting, arrays][-self.delay :]
            for key, record in zip(queue, waiting, strict=False):
                context.state[key] = ArrayRecord(dict(record))
        return messages.replace(reply, old)
