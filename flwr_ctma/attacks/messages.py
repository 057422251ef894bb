"""Reading and rewriting Flower messages, of the Message API and of legacy clients.

A legacy NumPyClient answers with the same kinds of record under other names:
`fitres.parameters`, `fitres.num_examples` and, as a ConfigRecord, `fitres.metrics`.
No function here changes its arguments.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_ctma.messages.arrays import numbers, records_of, to_array

__all__ = [
    "WEIGHT",
    "Record",
    "Sent",
    "float_arrays",
    "map_metrics",
    "map_updates",
    "replace",
    "sent_array",
    "sent_numbers",
    "server_round",
    "set_arrays",
    "set_updates",
    "updates",
]

Record = ArrayRecord | MetricRecord | ConfigRecord

WEIGHT = "num-examples"

M = TypeVar("M", Message, Message | None)
"""A reply, or None for silence."""


def replace(message: M, records: Mapping[str, Record | None]) -> M:
    """Copy a message with some of its records set, or removed if None.

    Silence (None) and a message without content (an error) are returned unchanged.
    """
    if message is None or not message.has_content():
        return message
    changed = copy.copy(message)
    merged: dict[str, Record | None] = {**message.content, **records}
    changed.content = RecordDict({k: v for k, v in merged.items() if v is not None})
    return changed


def server_round(message: Message) -> int | None:
    """Return the round that a message belongs to, None if it does not say.

    Flower's strategies write it into the config, its legacy server into the group id.
    """
    for config in records_of(message.content, ConfigRecord).values():
        for key in ("server-round", "server_round"):
            number = config.get(key)
            if isinstance(number, int):
                return max(0, number)
    group = message.metadata.group_id
    return int(group) if group.isdecimal() else None


Sent = Mapping[str, Mapping[str, NDArray[Any]]]
"""The arrays of a message, by names of record and array."""


def sent_numbers(message: Message) -> Sent:
    """View the arrays of a message."""
    records = records_of(message.content, ArrayRecord).items()
    return {
        name: {key: numbers(array) for key, array in record.items()}
        for name, record in records
    }


def float_arrays(reply: Message) -> dict[tuple[str, str], NDArray[Any]]:
    """View the floating-point arrays of a reply, by names of record and array."""
    return {
        (record, key): model
        for record, arrays in records_of(reply.content, ArrayRecord).items()
        for key, array in arrays.items()
        if (model := numbers(array)).dtype.kind == "f"
    }


def updates(reply: Message, sent: Sent) -> dict[tuple[str, str], NDArray[Any]]:
    """Return the difference of a reply to the message, by names of record and array.

    Floating-point arrays only. An array without a counterpart in the message (for
    example a client's momentum) is itself the update.
    """
    # An attacker may well want the overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            name: model - sent_array(sent, *name, model)
            for name, model in float_arrays(reply).items()
        }


def map_updates(
    reply: M, message: Message, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> M:
    """Change each update of a reply; dtypes stay the same."""
    if reply is None or not reply.has_content():
        return reply
    sent = sent_numbers(message)
    changed = {name: change(update) for name, update in updates(reply, sent).items()}
    return set_updates(reply, sent, changed)


def set_updates(
    reply: M, sent: Sent, changed: Mapping[tuple[str, str], NDArray[Any]]
) -> M:
    """Replace updates of a reply; dtypes stay the same."""
    if reply is None or not reply.has_content():
        return reply
    records = records_of(reply.content, ArrayRecord)
    arrays = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for (record, key), update in changed.items():
            own = numbers(records[record][key])
            model = sent_array(sent, record, key, own) + update
            arrays[record, key] = np.asarray(model, own.dtype)
    return set_arrays(reply, arrays)


def set_arrays(
    reply: Message, changed: Mapping[tuple[str, str], NDArray[Any]]
) -> Message:
    """Replace arrays of a reply."""
    records = {
        name: record.copy()
        for name, record in records_of(reply.content, ArrayRecord).items()
    }
    for (record, key), array in changed.items():
        records[record][key] = to_array(array)
    return replace(reply, records)


def sent_array(
    records: Sent, record: str, key: str, like: NDArray[Any]
) -> NDArray[Any]:
    """Return the sent array that an array of a reply answers, zeros if there is none.

    It has the same name, in the record of the same name or in the only record (legacy
    clients answer `fitins.parameters` with `fitres.parameters`).
    """
    if record not in records and len(records) == 1:
        record = next(iter(records))
    if record in records and key in records[record]:
        array = records[record][key]
        if array.shape == like.shape:
            return array.astype(like.dtype, copy=False)
    return np.zeros_like(like)


def map_metrics(reply: M, change: Callable[[str, bool, float], float]) -> M:
    """Change every number that a reply reports: `change(name, is_weight, number)`.

    Lists are changed number by number. Integers stay integers if possible.
    """
    if reply is None or not reply.has_content():
        return reply
    changed: dict[str, Record | None] = {}
    for name, record in _reports(reply.content):
        report: Any = {key: _changed(change, key, record[key]) for key in record}
        changed[name] = type(record)(report)
    return replace(reply, changed)


def _reports(content: RecordDict) -> Iterator[tuple[str, MetricRecord | ConfigRecord]]:
    yield from content.metric_records.items()
    for name, record in content.config_records.items():
        if name in ("fitres.metrics", "evaluateres.metrics"):
            yield name, record


def _changed(change: Callable[[str, bool, float], float], key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [float(_changed(change, key, item)) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number = change(key, key.replace("_", "-") == WEIGHT, value)
    # Flower sends integers in 64 bits.
    whole = isinstance(value, int) and abs(number) < 2**63 and number == int(number)
    return int(number) if whole else float(number)
