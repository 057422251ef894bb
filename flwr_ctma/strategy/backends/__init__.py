"""The places that hold the rows of a round, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.ray import RayBackend
from flwr_ctma.engine.stack import Stack
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.schema import Reply, ReplySchema
from flwr_ctma.spec import parse
from flwr_ctma.strategy.backends.streaming import Streaming

__all__ = ["Backend", "Local", "RoundRows", "parse_backend"]


class RoundRows(Protocol):
    """The rows of one round."""

    def add(self, key: str, reply: Reply) -> None:
        """Take a reply as it arrives; the key is the id of the message it answers."""

    def place(self, rows: CpuStack, keys: Sequence[str] = ()) -> Stack:
        """Return the stack of the rows that count; their keys are in their order."""


class Backend(Protocol):
    """A place for the rows of every round."""

    def open_round(self, schema: ReplySchema) -> RoundRows:
        """Return the place for the rows of a round in which this model was sent."""


@dataclass(frozen=True)
class Local:
    """Hold the rows in this process, and compute when all have arrived."""

    def open_round(self, schema: ReplySchema) -> "Local":
        """Return this backend: it keeps nothing."""
        return self

    def add(self, key: str, reply: Reply) -> None:
        """Do nothing."""

    def place(self, rows: CpuStack, keys: Sequence[str] = ()) -> CpuStack:
        """Return the rows as they are."""
        return rows


_BACKENDS = {"local": Local, "ray": RayBackend, "streaming": Streaming}


def parse_backend(backend: Backend | str) -> Backend:
    """Return the backend of this name, or the backend itself.

    Examples
    --------
    >>> parse_backend("ray(workers=4)")
    RayBackend(address=None, workers=4, cpus=1.0, timeout=60.0)
    >>> parse_backend("streaming")
    Streaming()
    """
    if isinstance(backend, str):
        found: Backend = parse(backend, _BACKENDS, "backend")
        return found
    if not hasattr(backend, "open_round"):
        raise parameter_error(
            "backend", '"local", "streaming", "ray" or a RayBackend', backend
        )
    return backend
