"""State on disk that a crash cannot spoil.

A checkpoint is a folder with one safetensors file for the arrays and one JSON file for
the rest. It is written under another name, flushed, and renamed, so that a folder with
a final name is complete. The checkpoint before is kept as well.
"""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result
from numpy.typing import NDArray

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "is_plain",
    "latest",
    "newest",
    "pack",
    "unpack",
    "write",
]

_ARRAYS, _STATE = "arrays.safetensors", "state.json"
_KEPT = 2
_NAME = re.compile(r"round-(\d{8,})")
_DRAFT = re.compile(r"\.round-\d{8,}\.\d+")


class CheckpointError(OSError):
    """A checkpoint could not be written; the ones before are intact."""


class Checkpoint(NamedTuple):
    """The state that was saved after a round."""

    number: int
    state: Any


def write(folder: Path, number: int, state: Any) -> Path:
    """Save a checkpoint, and delete all but this one and the one before.

    Other files and folders stay; one with the name of the checkpoint is renamed.

    Parameters
    ----------
    folder : Path
        It is created if it does not exist.
    number : int
        The number of the finished round.
    state : plain data
        Numbers, text, bytes, arrays, records, random generators, and containers of
        these.

    Raises
    ------
    ValueError
        If a part of the state is no plain data.
    CheckpointError
        If the disk is full or cannot be written to.
    """
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    skeleton = pack(state, arrays)
    numbers = save(arrays)
    text = {"sha256": hashlib.sha256(numbers).hexdigest(), "state": skeleton}
    final = folder / f"round-{number:08d}"
    draft = folder / f".{final.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _write_file(draft / _ARRAYS, numbers)
        _write_file(draft / _STATE, json.dumps(text).encode())
        _flush(draft)
        _make_way(final)
        draft.rename(final)
        _flush(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            error.errno,
            f"Could not save round {number} ({error.strerror}); the checkpoints before "
            "it are intact. See that the folder has room and can be written to, and "
            "resume",
            str(folder),
        ) from error
    # A checkpoint of a later round is incomplete, or the run would have resumed there.
    finished = _finished(folder)
    kept = [path for path in finished if _number(path) <= number][-_KEPT:]
    # A draft of an earlier round was left by a run that was killed; one of this round
    # may be that of another run, whose save would fail.
    drafts = [path for path in folder.iterdir() if _DRAFT.fullmatch(path.name)]
    left = [path for path in drafts if _number(path) < number]
    for old in {*finished, *left} - {*kept}:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """Return the last complete checkpoint, or None if there is none.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write(folder, 3, {"mean": np.array([1.0, 2.0]), "seen": (7, None)})
    >>> latest(folder)
    Checkpoint(number=3, state={'mean': array([1., 2.]), 'seen': (7, None)})
    """
    for path in reversed(_finished(folder)):
        state = _read(path)
        if state is not None:
            return Checkpoint(_number(path), state)
        log(WARNING, "The checkpoint %s is not whole: it is skipped.", path)
    return None


def newest(folder: Path) -> int | None:
    """Return the largest number of a checkpoint, whole or not; None without one."""
    return max(map(_number, _finished(folder)), default=None)


def is_plain(value: Any) -> bool:
    """Return whether a value is plain data, so that `write` can save it.

    Examples
    --------
    >>> is_plain({"best": (0.5, np.float32(1))}), is_plain({"best": print})
    (True, False)
    """
    try:
        pack(value, {})
    except (ValueError, RecursionError):
        return False
    return True


def pack(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return a nested value in a form that JSON can hold, its arrays set aside by name.

    Types are kept exactly: a subclass of a container, say, is no plain data.

    Raises
    ------
    ValueError
        If a part of the value is no plain data.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (bytes, bytearray):
        data = _set_aside(np.frombuffer(value, np.uint8), arrays)
        return {kind.__name__: data}
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        return {"scalar": _pack_array(np.asarray(value), arrays)}
    if kind is np.ndarray and value.dtype.kind in _KINDS:
        return {"array": _pack_array(value, arrays)}
    if kind is Array:
        data = _set_aside(np.frombuffer(value.data, np.uint8), arrays)
        return {"Array": [value.dtype, [*value.shape], value.stype, data]}
    if kind in _MAPPINGS:
        items = [[pack(k, arrays), pack(v, arrays)] for k, v in value.items()]
        return {kind.__name__: items}
    if kind is defaultdict and value.default_factory in _FACTORIES.values():
        items = [[pack(k, arrays), pack(v, arrays)] for k, v in value.items()]
        return {"defaultdict": [value.default_factory.__name__, items]}
    if kind is deque:
        return {"deque": [value.maxlen, [pack(item, arrays) for item in value]]}
    if kind in _SEQUENCES:
        return {kind.__name__: [pack(item, arrays) for item in value]}
    if kind is Result:
        return {"Result": pack(vars(value), arrays)}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is random.Random:
        return {"Random": pack(value.getstate(), arrays)}
    if kind is np.random.RandomState:
        return {"RandomState": pack(value.get_state(), arrays)}
    if kind is np.random.Generator:
        return {"Generator": pack(value.bit_generator.state, arrays)}
    raise parameter_error(
        "state", "made of numbers, text, bytes, arrays, records and containers", kind
    )


def unpack(packed: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the value that `pack` was given."""
    if not isinstance(packed, dict):
        return packed
    ((kind, held),) = packed.items()
    if kind in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[kind](arrays[held].tobytes())
    if kind == "array":
        return _unpack_array(held, arrays)
    if kind == "scalar":
        return _unpack_array(held, arrays)[()]
    if kind == "Array":
        dtype, shape, stype, data = held
        return Array(dtype, tuple(shape), stype, arrays[data].tobytes())
    if kind == "defaultdict":
        factory, held = held
        return defaultdict(_FACTORIES[factory], _unpack_items(held, arrays))
    if kind == "deque":
        maxlen, held = held
        return deque([unpack(item, arrays) for item in held], maxlen)
    if kind == "Result":
        return Result(**unpack(held, arrays))
    if kind == "complex":
        return complex(*held)
    if kind == "Random":
        generator = random.Random()
        generator.setstate(unpack(held, arrays))
        return generator
    if kind == "RandomState":
        state = np.random.RandomState()
        state.set_state(unpack(held, arrays))
        return state
    if kind == "Generator":
        state = unpack(held, arrays)
        bits = getattr(np.random, state["bit_generator"])()
        bits.state = state
        return np.random.Generator(bits)
    for mapping in _MAPPINGS:
        if kind == mapping.__name__:
            return mapping(_unpack_items(held, arrays))
    (sequence,) = (one for one in _SEQUENCES if one.__name__ == kind)
    return sequence([unpack(item, arrays) for item in held])


# Dtypes by kind: booleans, integers, floats, complex numbers, dates, and text.
_KINDS = "biufcmMSU"
_MAPPINGS: tuple[Any, ...] = (
    dict,
    OrderedDict,
    Counter,
    ArrayRecord,
    MetricRecord,
    ConfigRecord,
    RecordDict,
)
_SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset)
_FACTORIES: dict[str, Any] = {
    kind.__name__: kind for kind in (int, float, str, bool, list, dict, set)
}
# What safetensors can hold; others are saved as bytes.
_NATIVE = frozenset(
    {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
    | {"float16", "float32", "float64"}
)


def _unpack_items(held: Any, arrays: Mapping[str, NDArray[Any]]) -> dict[Any, Any]:
    return {unpack(k, arrays): unpack(v, arrays) for k, v in held}


def _set_aside(array: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> str:
    name = str(len(arrays))
    arrays[name] = array
    return name


def _pack_array(value: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> Any:
    solid = np.ascontiguousarray(value).reshape(value.shape)
    if solid.dtype.name in _NATIVE and solid.dtype.isnative:
        return _set_aside(solid, arrays)
    as_bytes = np.frombuffer(solid.tobytes(), np.uint8)
    return [_set_aside(as_bytes, arrays), solid.dtype.str, [*solid.shape]]


def _unpack_array(held: Any, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if isinstance(held, str):
        return arrays[held]
    name, dtype, shape = held
    return np.frombuffer(arrays[name].tobytes(), dtype).reshape(shape).copy()


def _read(path: Path) -> Any | None:
    """Return the state of one checkpoint, or None if its files have changed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        numbers = (path / _ARRAYS).read_bytes()
        text = json.loads((path / _STATE).read_bytes())
        if hashlib.sha256(numbers).hexdigest() != text["sha256"]:
            return None
        return unpack(text["state"], load(numbers))
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
        SafetensorError,
    ):
        return None


def _finished(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, in the order of their rounds."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted((path for path in named if _is_ours(path)), key=_number)


def _is_ours(path: Path) -> bool:
    """Whether a path is a folder of `write`, which holds nothing else."""
    if path.is_symlink() or not path.is_dir():
        return False
    return {held.name for held in path.iterdir()} <= {_ARRAYS, _STATE}


def _make_way(final: Path) -> None:
    """Delete a checkpoint, or rename what others put in its place."""
    if _is_ours(final):
        shutil.rmtree(final)
    elif os.path.lexists(final):
        aside = next(
            path
            for i in itertools.count(1)
            if not os.path.lexists(path := final.with_name(f"{final.name}.other-{i}"))
        )
        final.rename(aside)
        log(WARNING, "%s is no checkpoint: its name is now %s.", final, aside.name)


def _number(path: Path) -> int:
    return int(path.name.split("-")[1].split(".")[0])


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Make a renaming in a folder permanent."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
