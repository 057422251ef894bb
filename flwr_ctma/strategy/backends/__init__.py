"""The places that hold the rows of a round, by name."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.ray import RayBackend
from flwr_ctma.engine.stack import Stack
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.schema import Reply, ReplySchema
from flwr_ctma.spec import parse
from flwr_ctma.strategy.backends.local import Local

__all__ = ["Backend", "Local", "RoundRows", "parse_backend"]


class RoundRows(Protocol):
    """The rows of one round."""

    def add(self, replies: Mapping[str, Reply], waiting: bool) -> None:
        """Take replies, by the id of the message that each answers.

        The round waits for others, or has what it gets.
        """

    def place(self, rows: CpuStack, keys: Sequence[str] = ()) -> Stack:
        """Return the stack of the rows that count; their keys are in their order."""


class Backend(Protocol):
    """A place for the rows of every round."""

    def open_round(self, schema: ReplySchema, needs_products: bool) -> RoundRows:
        """Return the place for the rows of a round in which this model was sent.

        The rule says whether it needs the inner products of all rows.
        """


_BACKENDS = {"local": Local, "ray": RayBackend}


def parse_backend(backend: Backend | str) -> Backend:
    """Return the backend of this name, or the backend itself.

    Examples
    --------
    >>> parse_backend("ray(workers=4)")
    RayBackend(address=None, workers=4, cpus=1.0, timeout=60.0)
    >>> parse_backend("local")
    Local()
    """
    if isinstance(backend, str):
        found: Backend = parse(backend, _BACKENDS, "backend")
        return found
    if not hasattr(backend, "open_round"):
        raise parameter_error("backend", '"local", "ray" or a RayBackend', backend)
    return backend
