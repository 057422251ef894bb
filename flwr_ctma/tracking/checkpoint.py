"""State on disk that a crash cannot spoil.

A checkpoint is a folder with one safetensors file for the numbers and one JSON file for
the rest. It is written under another name, flushed, and renamed: what has its final
name is whole. The one before is kept until the next is, so there is always a good one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error

__all__ = ["Checkpoint", "CheckpointError", "latest", "pack", "unpack", "write"]

_ARRAYS, _STATE = "arrays.safetensors", "state.json"
_KEPT = 2


class CheckpointError(OSError):
    """A checkpoint could not be written; the ones before are intact."""


class Checkpoint(NamedTuple):
    """What was saved after a round."""

    number: int
    state: Any


def write(folder: Path, number: int, state: Any) -> Path:
    """Save state under a number, and drop all but this checkpoint and the one before.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    number : int
        Of the round that is finished.
    state : nested dict, list and tuple of None, bool, int, float, str, ndarray and
        ArrayRecord

    Raises
    ------
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
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _flush(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            error.errno,
            f"Could not save round {number} ({error.strerror}); the checkpoints before "
            "it are intact. Free some space and resume",
            str(folder),
        ) from error
    # One of a later round is not whole, or the run would have gone on after it.
    kept = [path for path in _finished(folder) if path.name <= final.name][-_KEPT:]
    for old in {*folder.glob("round-*"), *folder.glob(".round-*")} - {*kept}:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """Read the last checkpoint that is whole, or None if there is none.

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
            return Checkpoint(int(path.name.removeprefix("round-")), state)
        log(WARNING, "The checkpoint %s is not whole: it is passed over.", path)
    return None


def pack(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """Write a nested value as JSON can hold it, its arrays set aside by name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"array": name}
    if isinstance(value, ArrayRecord):
        return {"record": [[k, pack(a.numpy(), arrays)] for k, a in value.items()]}
    if isinstance(value, Mapping):
        return {"dict": [[pack(k, arrays), pack(v, arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(item, arrays) for item in value]}
    raise parameter_error(
        "state", "made of numbers, text, arrays and containers", type(value)
    )


def unpack(packed: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Read what `pack` wrote."""
    if not isinstance(packed, dict):
        return packed
    ((kind, held),) = packed.items()
    if kind == "array":
        return arrays[held]
    if kind == "record":
        return ArrayRecord({k: Array(unpack(a, arrays)) for k, a in held})
    if kind == "dict":
        return {unpack(k, arrays): unpack(v, arrays) for k, v in held}
    items = [unpack(item, arrays) for item in held]
    return items if kind == "list" else tuple(items)


def _read(path: Path) -> Any | None:
    """Read one checkpoint; None if it is not what was written."""
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
    return sorted(folder.glob("round-*"))


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Make a change of names in a folder last."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
