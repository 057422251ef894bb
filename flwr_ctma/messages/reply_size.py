"""How large a reply becomes when it is inflated, computed before it is.

Flower sends a message as a tree of objects, each named by its hash. A small upload can
become large: an `Array` names its chunks by a list of positions that may repeat, and a
record names its arrays, and a message its records, by dictionaries that may name one
object many times. Lists of metrics take several times their encoded size.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr_ctma.compat import read_object_head
from flwr_ctma.errors import parameter_error

__all__ = ["ReplyLimit", "ReplySize", "ReplyTooLarge"]

# Bytes of memory for each encoded byte of names, positions and metrics. An empty list
# takes 56 bytes where JSON takes 3; a metric takes 32 in a list where protobuf takes 1.
_OBJECT_BYTES = 32

# The kinds of objects that each kind may hold: Flower refuses any other.
_CHILDREN = {
    "Message": {"RecordDict"},
    "RecordDict": {"ArrayRecord", "MetricRecord", "ConfigRecord"},
    "ArrayRecord": {"Array"},
    "Array": {"ArrayChunk"},
    "ArrayChunk": set(),
    "MetricRecord": set(),
    "ConfigRecord": set(),
}


class ReplyTooLarge(ValueError):
    """A reply would take more memory than its limit."""


@dataclass(frozen=True)
class ReplyLimit:
    """The memory that one reply may take: factor · (bytes sent) + allowance.

    Parameters
    ----------
    factor : float (default: 4.0)
        Replies in float64 to a model in float16 take four times what was sent.
    allowance : int (default: 64 MiB)
        Bytes, for metrics and for replies to messages without arrays. Each encoded
        byte of metrics and of names counts as 32.

    Raises
    ------
    ValueError
        If a number is negative or not finite.

    Examples
    --------
    >>> ReplyLimit().of(10**9) / 1e9
    4.067108864
    """

    factor: float = 4.0
    allowance: int = 2**26

    def __post_init__(self) -> None:
        for name in ("factor", "allowance"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf"):
                raise parameter_error(name, "a finite number, at least 0", value)

    def of(self, sent: int) -> float:
        """Return the limit of the reply to a message, in bytes."""
        return self.factor * sent + self.allowance


@dataclass(frozen=True)
class _Object:
    kind: str
    children: list[str]
    length: int
    body: bytes  # empty for chunks, which are large


@dataclass
class ReplySize:
    """The size of a reply, from its objects.

    Parameters
    ----------
    limit : float
        Bytes.
    """

    limit: float
    _objects: dict[str, _Object] = field(default_factory=dict)
    _pulled: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, object_id: str, content: bytes) -> None:
        """Take note of an object.

        Raises
        ------
        ReplyTooLarge
            If the objects take more than the limit already.
        ValueError
            If the object is none of Flower's.
        """
        kind, children, _ = read_object_head(content)
        length = len(content)
        if kind not in _CHILDREN:
            raise ValueError("an object is of an unknown kind")
        is_chunk = kind == "ArrayChunk"
        body = b"" if is_chunk else content[content.index(b"\0") + 1 :]
        with self._lock:
            if object_id not in self._objects:
                self._pulled += length if is_chunk else _OBJECT_BYTES * length
            self._objects[object_id] = _Object(kind, children, length, body)
            pulled = self._pulled
        self._compare(pulled)

    def check(self, message_id: str) -> None:
        """Compute what the message takes once it is inflated.

        Raises
        ------
        ReplyTooLarge
            If that is more than the limit.
        ValueError, LookupError, TypeError
            If the objects are not a message.
        """
        if self._objects[message_id].kind != "Message":
            raise ValueError("the object is no message")
        self._compare(self._size(message_id, {}))

    def _size(self, object_id: str, known: dict[str, float]) -> float:
        """Return the size of an object with all that it names, as often as it does."""
        if object_id in known:
            return known[object_id]
        this = self._objects[object_id]
        if this.kind == "ArrayChunk":
            return this.length
        for child in this.children:
            if self._objects[child].kind not in _CHILDREN[this.kind]:
                raise ValueError(f"an object cannot be a part of {this.kind}")
        named = Counter(_NAMED[this.kind](this)) if this.kind in _NAMED else {}
        size = _OBJECT_BYTES * this.length + sum(
            times * self._size(child, known) for child, times in named.items()
        )
        known[object_id] = size
        return size

    def _compare(self, size: float) -> None:
        if size > self.limit:
            raise ReplyTooLarge(
                f"the reply takes {size:.0f} bytes or more, and {self.limit:.0f} are "
                "allowed (`reply_limit`)"
            )


def _chunks(array: _Object) -> list[str]:
    """Return the ids of an array's chunks, in the order in which they are joined."""
    positions = json.loads(array.body)["arraychunk_ids"]
    return [array.children[position] for position in positions]


def _values(record: _Object) -> list[str]:
    """Return the ids that a record names under its keys."""
    return list(json.loads(record.body).values())


_NAMED: dict[str, Callable[[_Object], list[str]]] = {
    "Message": lambda message: message.children,
    "RecordDict": _values,
    "ArrayRecord": _values,
    "Array": _chunks,
}
