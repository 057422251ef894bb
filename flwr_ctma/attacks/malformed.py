"""Replies that break the protocol, in every way known to end or spoil a Flower run."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from flwr_ctma.attacks.base import Attack
from flwr_ctma.attacks.messages import WEIGHT
from flwr_ctma.compat import ClientAppCallable, ErrorCode
from flwr_ctma.errors import parameter_error

__all__ = ["FAULTS", "Malformed"]

_OF_RECORDS = (
    *("missing-key", "extra-key", "other-record"),
    *("no-arrays", "empty-arrays", "two-arrays"),
)
_OF_ONE_ARRAY = (
    *("wrong-shape", "size-zero", "lying-header", "pickle", "garbage"),
    *("unknown-stype", "complex", "string", "one-nan"),
)
_OF_ALL_ARRAYS = {"nan": np.nan, "inf": np.inf, "large": 1e6, "huge": 1e30}
_OF_METRICS = (
    *("no-metrics", "two-metrics", "extra-metric", "list-loss", "no-weight"),
    *("list-weight", "negative-weight", "cancelling-weight", "huge-weight"),
    "nan-weight",
)
FAULTS = (
    *(*_OF_RECORDS, *_OF_ONE_ARRAY, *_OF_ALL_ARRAYS, *_OF_METRICS),
    *("error", "silent"),
)
"""Names of the faults that `Malformed` knows."""


@dataclass(frozen=True)
class Malformed(Attack, name="malformed"):
    """Answer honestly, but with one fault in the reply, to training and to evaluation.

    Parameters
    ----------
    fault : str (default: "wrong-shape")
        One of `FAULTS`. Most of them end a run of Flower's FedAvg; with the others, its
        model becomes NaN, huge or the attacker's.

    Raises
    ------
    ValueError
        If `fault` is another word.

    Notes
    -----
    Faults of arrays do not change a reply without arrays, as in evaluation.
    "negative-weight" and "cancelling-weight" make the weights of equal clients sum to 1
    and to 0. "silent" sends no reply, which crashes a deployed SuperNode.

    Examples
    --------
    >>> len(FAULTS)
    31
    >>> Malformed("wieght")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Parameter `fault` should be one of cancelling-weight, ...
    """

    fault: str = "wrong-shape"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.fault not in FAULTS:
            raise parameter_error(
                "fault", f"one of {', '.join(sorted(FAULTS))}", self.fault
            )

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Reply with a fault."""
        reply = respond(message, context)
        if self.fault == "silent" or reply is None:
            return None
        if self.fault == "error":
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "a simulated error")
            return Message(error, reply_to=message)
        if not reply.has_content():
            return reply
        content = _copy(reply.content)
        for name in content.array_records:
            _spoil_arrays(content, name, self.fault)
        for name in content.metric_records:
            peers = int(context.node_config.get("num-partitions", 2)) - 1
            _spoil_metrics(content, name, self.fault, peers)
        return Message(content, reply_to=message)

    evaluate = train


def _spoil_arrays(content: RecordDict, name: str, fault: str) -> None:
    arrays: Any = content[name]
    for key, array in list(arrays.items()):
        if fault in _OF_ALL_ARRAYS and array.numpy().dtype.kind == "f":
            arrays[key] = Array(np.full_like(array.numpy(), _OF_ALL_ARRAYS[fault]))
    first = next(iter(arrays))
    if fault in _OF_ONE_ARRAY:
        arrays[first] = _spoilt(arrays[first], fault)
    match fault:
        case "missing-key":
            del arrays[first]
        case "extra-key":
            arrays["extra"] = Array(np.zeros(1))
        case "other-record":
            content[f"other-{name}"] = content.pop(name)
        case "no-arrays":
            del content[name]
        case "empty-arrays":
            content[name] = ArrayRecord()
        case "two-arrays":
            content[f"second-{name}"] = arrays


def _spoilt(array: Array, fault: str) -> Array:
    dtype, shape, stype = array.dtype, array.shape, array.stype
    values = array.numpy()
    match fault:
        case "wrong-shape":
            return Array(np.append(values, values.dtype.type(0)))
        case "size-zero":
            return Array(values.reshape(-1)[:0])
        case "lying-header":
            # The header claims twice as many entries as the data holds.
            twice = _npy(np.append(values, values))
            return Array(dtype, shape, stype, twice[: len(twice) - values.nbytes])
        case "pickle":
            return Array("object", (1,), stype, _npy(np.array([{}], dtype=object)))
        case "garbage":
            return Array(dtype, shape, stype, b"garbage" * 9)
        case "unknown-stype":
            return Array(dtype, shape, "unknown", array.data)
        case "complex":
            return Array(values.astype(np.complex64))
        case "string":
            return Array(values.astype(str))
        case _:
            values = values.copy()
            values.flat[:1] = np.nan
            return Array(values)


def _spoil_metrics(content: RecordDict, name: str, fault: str, peers: int) -> None:
    metrics: Any = content[name]
    keys = {key.replace("_", "-"): key for key in metrics}
    weight = keys.pop(WEIGHT, WEIGHT)
    loss = next(iter(keys.values()), "loss")
    match fault:
        case "no-metrics":
            del content[name]
        case "two-metrics":
            content[f"second-{name}"] = metrics
        case "extra-metric":
            metrics["extra"] = 1.0
        case "list-loss":
            metrics[loss] = [0.0, 0.0]
        case "no-weight":
            metrics.pop(weight, None)
        case "list-weight":
            metrics[weight] = [1.0]
        case "negative-weight":
            metrics[weight] = 1 - peers * metrics.get(weight, 1)
        case "cancelling-weight":
            metrics[weight] = -peers * metrics.get(weight, 1)
        case "huge-weight":
            metrics[weight] = 1e30
        case "nan-weight":
            metrics[weight] = float("nan")


def _npy(values: "np.ndarray[Any, Any]") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _copy(content: RecordDict) -> RecordDict:
    """Copy the records, so that the client's own ones stay intact."""
    copied = RecordDict({**content})
    for name, arrays in content.array_records.items():
        copied[name] = ArrayRecord(dict(arrays))
    for name, metrics in content.metric_records.items():
        copied[name] = MetricRecord(dict(metrics))
    return copied
