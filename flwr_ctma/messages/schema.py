"""Flower replies ⇄ updates: the form of a reply, and views of its arrays.

A reply is inspected on its own against the model that was sent. The arrays of a good
reply are viewed in place, not copied, unless the model is small; a bad reply becomes a
`Rejection` with a reason. Nothing is unpickled, and no memory is allocated because a
header asks for it.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from flwr_ctma.compat import make_record
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages import npy
from flwr_ctma.messages.arrays import numbers, records_of, to_array
from flwr_ctma.tracking.evidence import FAULTS, PROOFS

__all__ = ["BUFFER_KEYS", "Rejection", "Reply", "ReplySchema", "quote", "read_metrics"]

# Running statistics, which gradients do not change: BatchNorm's, by PyTorch's names.
BUFFER_KEYS = ("running_mean", "running_var", "num_batches_tracked")

# Squared norms beyond this are nearer to float32's overflow than to any model.
_LARGEST_SQUARE = 1e36
# Bytes of a model whose tensors are joined to layers: up to this size, it takes longer
# to visit a tensor on its own than to copy it.
_SMALL = 2**20


@dataclass(frozen=True)
class Rejection:
    """Why a reply, or a part of it, does not count."""

    reason: str  # a word, to count by
    detail: str = ""  # a sentence, to read

    @property
    def proof(self) -> bool:
        """Whether no honest client of the same app can send such a reply."""
        return self.reason in PROOFS

    @property
    def fault(self) -> bool:
        """Whether an honest client sends such a reply only if it is broken."""
        return self.reason in FAULTS

    def __str__(self) -> str:
        """Reason and detail, for the log."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True)
class Reply:
    """The arrays and metrics of a good reply.

    Attributes
    ----------
    metrics : MetricRecord
        Not inspected: the client's own claims.
    name : str
        The name of the record of metrics.
    rows : tuple of one-dimensional arrays
        The layers of the model, see `ReplySchema`; none in a reply to evaluation.
    """

    metrics: MetricRecord
    name: str
    rows: tuple[NDArray[Any], ...] = ()

    @property
    def sample(self) -> bytes:
        """Some of the numbers: a key that sorts replies by their content.

        Sums of floats depend on their order. Node ids are drawn anew for every run, and
        replies arrive in any order, so that neither can give the same bits twice.
        """
        return b"".join(row[:: 1 + row.size // 1000].tobytes() for row in self.rows)


class ReplySchema:
    """The names, shapes and dtypes of the arrays that were sent, as replies need them.

    Rules see layers. A layer is a tensor of the model, viewed in place; or, in a model
    of at most 1 MiB, all tensors of one dtype that are treated alike, side by side in a
    copy: the time of a round of such a model goes with the number of its layers.

    Parameters
    ----------
    sent : ArrayRecord
        Real numbers, with floats among them; finite, but for constants.
    buffer_keys : Collection[str] (default: BUFFER_KEYS)
        Arrays that do not count in distances, by the last part of their key: the part
        after the last dot. Integers and booleans never count.
    constant_keys : Collection[str] (default: ())
        Arrays that no client trains, such as masks of −inf or −3.4e38, by the last part
        of their key. They stay as they were sent; the values in replies are not used.
    by_layer : bool (default: False)
        Whether each tensor is a layer, also in a small model: some rules treat tensors
        one by one.

    Attributes
    ----------
    measured : tuple[int, ...]
        Positions of the layers that count in distances.
    buffers : tuple[int, ...]
        Positions of the layers that are aggregated and do not count in distances.

    Raises
    ------
    ValueError
        If an array cannot be aggregated: the sentence names it.

    Examples
    --------
    >>> model = ReplySchema(ArrayRecord([np.zeros((2, 2), np.float32)]))
    >>> metrics = MetricRecord({"num-examples": 10})
    >>> content = RecordDict({"metrics": metrics})
    >>> content["arrays"] = ArrayRecord([np.ones((2, 2), np.float32)])
    >>> model.read(content).rows
    (array([1., 1., 1., 1.], dtype=float32),)
    >>> content["arrays"] = ArrayRecord([np.ones((2, 3), np.float32)])
    >>> print(model.read(content))
    shape: '0' is (2, 3), not (2, 2)
    """

    def __init__(
        self,
        sent: ArrayRecord,
        buffer_keys: Collection[str] = BUFFER_KEYS,
        constant_keys: Collection[str] = (),
        by_layer: bool = False,
    ) -> None:
        for name, names in (
            ("buffer_keys", buffer_keys),
            ("constant_keys", constant_keys),
        ):
            if isinstance(names, str) or not all(isinstance(n, str) for n in names):
                raise parameter_error(name, "a collection of strings", names)
        self._tensors = tuple(
            _Tensor.of(key, array, _last(key) in constant_keys)
            for key, array in sent.items()
        )
        self._keys = dict.fromkeys(sent).keys()
        grouped: dict[tuple[bool, Any], list[_Tensor]] = {}
        joined = not by_layer and sum(t.origin.nbytes for t in self._tensors) <= _SMALL
        for t in self._tensors:
            if not t.constant:
                counts = t.dtype.kind == "f" and _last(t.key) not in buffer_keys
                alike = (counts, t.dtype) if joined else (counts, t.key)
                grouped.setdefault(alike, []).append(t)
        self._layers = tuple(
            _Layer.of(tensors, counts) for (counts, _), tensors in grouped.items()
        )
        full = [i for i, layer in enumerate(self._layers) if layer.origin.size]
        self.measured = tuple(i for i in full if self._layers[i].counts)
        self.buffers = tuple(i for i in full if not self._layers[i].counts)
        if not self.measured:
            raise parameter_error(
                "arrays",
                "a model with floats that count in distances",
                list(self._keys)[:10],
                "Integers, running statistics and constants do not count; models that "
                "are not made of floats, such as XGBoost's trees, cannot be averaged.",
            )

    def read(self, content: RecordDict) -> Reply | Rejection:
        """Inspect a reply to training: one ArrayRecord, as sent, and one MetricRecord.

        Names of records are free, as in Flower; names and shapes of arrays are not. A
        float may come back as any real dtype, an integer as any integer. What an Array
        says about itself beside its bytes is not used, so it need not be true.
        """
        try:
            _, arrays = _only(records_of(content, ArrayRecord), "ArrayRecord")
            name, metrics = _only(records_of(content, MetricRecord), "MetricRecord")
            if arrays.keys() != self._keys:
                raise _Reject("keys", self._difference(arrays.keys()))
            with np.errstate(over="ignore", invalid="ignore"):
                rows = tuple(layer.read(arrays) for layer in self._layers)
        except _Reject as reject:
            return reject.rejection
        return Reply(metrics, name, rows)

    def updates(
        self,
        replies: Sequence[Reply],
        positions: Sequence[int],
        reference: Sequence[NDArray[Any]] | None = None,
    ) -> Updates:
        """Stack the replies' rows of some layers, relative to what was sent."""
        layers = [
            Layer([reply.rows[i] for reply in replies], self._layers[i].origin)
            for i in positions
        ]
        return Updates.of(layers, reference)

    def by_key(self, update: Mapping[int, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return an update, by position of the layer, as flat tensors by name."""
        return {
            tensor.key: part
            for i, vector in update.items()
            for tensor, part in self._layers[i].split(vector)
        }

    def origin(self, positions: Sequence[int]) -> list[NDArray[Any]]:
        """Return some layers of the model that was sent."""
        return [self._layers[i].origin for i in positions]

    def check_widths(self, found: Sequence[int], positions: Sequence[int]) -> None:
        """Raise a ValueError if a row that was saved has other layers than these.

        Parameters
        ----------
        found : sequence of int
            Numbers in each layer of the row.
        positions : sequence of int
            The layers that it should have.
        """
        widths = [self._layers[i].origin.size for i in positions]
        if found != widths:
            raise parameter_error(
                "checkpoint",
                f"of a run with layers of {widths} numbers",
                found,
                "Resume with the settings and the release of flwr-ctma of that run, or "
                "start in another folder.",
            )

    def write(self, update: Mapping[int, NDArray[Any]]) -> ArrayRecord:
        """Add an update, by position of the layer, to what was sent.

        Keys, order, shapes and dtypes are those sent. Integers are rounded; what a
        dtype cannot hold is clipped to its range.
        """
        moved = self.by_key(
            {i: self._layers[i].origin + vector for i, vector in update.items()}
        )
        return make_record(
            {
                t.key: t.write(moved[t.key]) if t.key in moved else t.sent
                for t in self._tensors
            }
        )

    def check_same_arrays(self, arrays: ArrayRecord, source: str) -> None:
        """Raise a ValueError if a strategy made another model of the one that was sent.

        Parameters
        ----------
        arrays : ArrayRecord
            What the strategy returned.
        source : str
            The name of the strategy, for the error.
        """
        if arrays.keys() != self._keys:
            found: object = self._difference(arrays.keys())
        else:
            found = {
                t.key: tuple(arrays[t.key].shape)
                for t in self._tensors
                if tuple(arrays[t.key].shape) != t.shape
            }
        if found:
            raise parameter_error(
                "strategy",
                "a strategy that returns all arrays of the model in the shapes in "
                "which they were sent",
                f"{source}, with {found}",
                "Robust rules compare replies to one model: keep its form.",
            )

    def restore_dtypes_and_buffers(
        self, robust: ArrayRecord, optimised: ArrayRecord
    ) -> ArrayRecord:
        """Return the server optimiser's result in the form of the model that was sent.

        Buffers are not parameters: a step of Adam can make a variance negative, so
        they stay as aggregated; constants stay as sent. Floats that became wider on the
        way (Flower's FedAdam multiplies float32 by a float64 scalar) get back the dtype
        that was sent.
        """
        settled = dict(optimised.items())
        aggregated = {t.key for i in self.buffers for t in self._layers[i].tensors}
        for t in self._tensors:
            if t.key in aggregated or t.constant:
                settled[t.key] = robust[t.key]
            elif t.key in settled and settled[t.key].dtype != t.dtype.name:
                settled[t.key] = t.write(numbers(settled[t.key]))
        return make_record(settled)

    def _difference(self, found: Collection[str]) -> str:
        missing = [key for key in self._keys if key not in found]
        unknown = [key for key in found if key not in self._keys]
        return "; ".join(
            f"{len(keys)} {word}, such as {quote(keys[0])}"
            for keys, word in ((missing, "missing"), (unknown, "unknown"))
            if keys
        )


def read_metrics(content: RecordDict) -> Reply | Rejection:
    """Inspect a reply to evaluation: exactly one MetricRecord, under any name."""
    try:
        name, metrics = _only(records_of(content, MetricRecord), "MetricRecord")
    except _Reject as reject:
        return reject.rejection
    return Reply(metrics, name)


def quote(text: object, width: int = 60) -> str:
    r"""Return a client's text for the log: escaped, on one line, short.

    Examples
    --------
    >>> print(quote("a\nb"), quote("a" * 1_000_000, width=8))
    'a\nb' 'aaaaaa…
    """
    shown = repr(str(text)[:width])
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"


class _Reject(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        self.rejection = Rejection(reason, detail)


@dataclass(frozen=True)
class _Tensor:
    """One array of the model as it was sent."""

    key: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    origin: NDArray[Any]  # flat; zeros and ones for booleans
    sent: Array
    constant: bool

    @classmethod
    def of(cls, key: str, sent: Array, constant: bool) -> "_Tensor":
        """Read an array that the server sends."""
        try:
            dtype, shape, values = _view(key, sent)
        except _Reject as reject:
            raise parameter_error(
                f"arrays[{key!r}]",
                "an array of real numbers of at most 64 bits",
                str(reject.rejection),
                "Convert it, or leave it out of what is averaged.",
            ) from None
        if not constant:
            _check_usable(key, values)
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        return cls(key, dtype.newbyteorder("="), shape, native, sent, constant)

    def view(self, array: Array) -> NDArray[Any]:
        """View a client's array, flat; it must have this shape and a fitting dtype."""
        row = _view(self.key, array, self.shape).flat
        if row.dtype != self.origin.dtype:
            if row.dtype.kind == "f" != self.dtype.kind:
                raise _Reject("dtype", f"{quote(self.key)} is {row.dtype}")
            row = row.astype(self.origin.dtype)
        return row

    def write(self, values: NDArray[Any]) -> Array:
        """Return values as an Array of this dtype and shape."""
        if self.dtype.kind == "b":
            values = values >= 0.5
        elif self.dtype != values.dtype:
            whole = np.rint(values) if self.dtype.kind in "iu" else values
            values = whole.clip(*_range(self.dtype)).astype(self.dtype)
        return to_array(np.asarray(values).reshape(self.shape))


@dataclass(frozen=True)
class _Layer:
    """Tensors of the model, side by side."""

    tensors: tuple[_Tensor, ...]
    counts: bool  # in distances
    origin: NDArray[Any]

    @classmethod
    def of(cls, tensors: Sequence[_Tensor], counts: bool) -> "_Layer":
        """Join tensors of one dtype."""
        origin = _joined([t.origin for t in tensors])
        if len(tensors) > 1:  # each is usable, but squares add up
            _check_usable(tensors[0].key, origin)
        return cls(tuple(tensors), counts, origin)

    def read(self, arrays: ArrayRecord) -> NDArray[Any]:
        """Return this layer of a reply, of numbers that a rule can use."""
        parts = [t.view(arrays[t.key]) for t in self.tensors]
        row = _joined(parts)
        if not _usable(row):
            wrong = (i for i, part in enumerate(parts) if not _usable(part))
            key = self.tensors[next(wrong, 0)].key
            size = "too large" if np.isfinite(row).all() else "not finite"
            raise _Reject(size.replace(" ", "-"), f"{quote(key)} is {size}")
        return row

    def split(self, row: NDArray[Any]) -> Iterator[tuple[_Tensor, NDArray[Any]]]:
        """Yield each tensor, and its part of a row."""
        end = 0
        for tensor in self.tensors:
            begin, end = end, end + tensor.origin.size
            yield tensor, row[begin:end]


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _last(key: str) -> str:
    """Return the part of a key after its last dot."""
    return key.rpartition(".")[2]


def _view(key: str, array: Array, shape: tuple[int, ...] | None = None) -> npy.Numbers:
    if array.stype != "numpy.ndarray":
        raise _Reject("stype", f"{quote(key)} is {quote(array.stype)}")
    try:
        return npy.view(array.data, shape)
    except ValueError as error:
        reason, detail = error.args
        raise _Reject(reason, f"{quote(key)} {detail}") from None


def _usable(row: NDArray[Any]) -> bool:
    """Return whether all numbers are finite and small enough for distances."""
    if row.dtype.kind != "f":
        return True
    if row.dtype.itemsize < 4:  # the squares of float16 overflow, its values do not
        return bool(np.isfinite(row).all())
    # One pass over memory, half the time of `isfinite`: a sum of squares is finite
    # only if all of them are.
    return bool(row.dot(row) <= _LARGEST_SQUARE)


def _check_usable(key: str, sent: NDArray[Any]) -> None:
    """Raise a ValueError for numbers to send that no reply could have."""
    with np.errstate(over="ignore", invalid="ignore"):
        usable = _usable(sent)
    if not usable:
        raise parameter_error(
            f"arrays[{key!r}]",
            "finite, and of a norm below 1e18",
            "NaN, infinity or huge numbers in the model to send",
            "Start from finite arrays; if training made this, lower the server's "
            "learning rate. If no client trains this array, such as a mask, name "
            "it in `constant_keys`.",
        )


def _range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the smallest and the largest float64 that a dtype can hold."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    top = float(high)
    return float(low), top if int(top) <= high else math.nextafter(top, 0)


def _only(records: Mapping[str, Any], kind: str) -> tuple[str, Any]:
    if len(records) != 1:
        raise _Reject("records", f"{len(records)} {kind}s, one is expected")
    return next(iter(records.items()))
