"""The server's own update: the row that rules with a trusted row trust."""

from collections.abc import Callable
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.schema import Rejection, ReplySchema

__all__ = ["ServerUpdate", "trusted_update"]

ServerUpdate = Callable[[int, ArrayRecord], ArrayRecord]
"""It maps a round and the model to the model after the server's own training."""


def trusted_update(
    train: ServerUpdate, server_round: int, schema: ReplySchema
) -> list[NDArray[Any]] | None:
    """Return the server's update, over the measured layers of the model that was sent.

    The result of `train` is inspected as a reply of a client is.

    Parameters
    ----------
    train : callable
    server_round : int
    schema : ReplySchema
        The model that was sent.

    Returns
    -------
    list of ndarray, or None
        None if the training diverged: the numbers are not finite, or too large.

    Raises
    ------
    RuntimeError
        If `train` raises an exception.
    ValueError
        If its result has not the form of the model.
    """
    try:
        trained = train(server_round, schema.write({}))
    except Exception as error:
        raise RuntimeError(
            f"`server_update` failed in round {server_round}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(trained, ArrayRecord):
        raise _wrong_form(type(trained).__name__)
    reply = schema.read(RecordDict({"arrays": trained, "metrics": MetricRecord()}))
    if isinstance(reply, Rejection):
        if reply.reason not in ("not-finite", "too-large"):
            raise _wrong_form(str(reply))
        log(WARNING, "aggregate_train: Skipped. `server_update` diverged: %s", reply)
        return None
    origin = schema.origin(schema.measured)
    rows = [reply.rows[i] for i in schema.measured]
    return [row - sent for row, sent in zip(rows, origin, strict=True)]


def _wrong_form(found: str) -> ValueError:
    return parameter_error(
        "server_update",
        "a function that returns the trained model, an ArrayRecord with the keys, "
        "shapes and dtypes of the one it was given",
        found,
        "For PyTorch: `return ArrayRecord(model.state_dict())`.",
    )
