"""Where the rows of a round are held, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import Message

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.ray import RayBackend
from flwr_ctma.engine.stack import Stack
from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import parse
from flwr_ctma.strategy.backends.streaming import Streaming

__all__ = ["Backend", "Local", "RoundStore", "parse_backend"]


class RoundStore(Protocol):
    """The rows of a round."""

    def arrive(self, messages: Sequence[Message]) -> None:
        """Take notice of replies that came, before all are there."""

    def place(self, rows: CpuStack) -> Stack:
        """Hold the rows that count, and answer what rules ask of them."""


class Backend(Protocol):
    """What holds rows, round after round."""

    def begin(self, sent: Any, read: Any) -> RoundStore:
        """Begin a round, in which this model was sent."""


@dataclass(frozen=True)
class Local:
    """Hold rows in this process, viewed as they came, and wait for all of them."""

    def begin(self, sent: Any, read: Any) -> "Local":
        """Begin a round."""
        return self

    def arrive(self, messages: Sequence[Message]) -> None:
        """Wait for the others."""

    def place(self, rows: CpuStack) -> CpuStack:
        """Leave them where they are."""
        return rows


_BACKENDS = {"local": Local, "ray": RayBackend, "streaming": Streaming}


def parse_backend(backend: Backend | str) -> Backend:
    """Give the backend that was named.

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
    if not hasattr(backend, "begin"):
        raise parameter_error(
            "backend", '"local", "streaming", "ray" or a RayBackend', backend
        )
    return backend
