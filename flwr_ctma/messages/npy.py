"""A view of the numbers in `.npy` bytes, for bytes that nobody vouches for.

`numpy.load` parses the header as a Python literal, allocates what it promises, and
copies. Here the header must be the very text that `numpy.save` writes for plain
numbers, the bytes must be exactly as many as it says, and the numbers are viewed where
they are.
"""

import math
import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Numbers", "view"]

_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)"
    rb"\{'descr': '([<>=|]?(?:b1|[iu][1248]|f[248]))', "
    rb"'fortran_order': (False|True), "
    rb"'shape': \(((?:%(n)b(?:, ?%(n)b){0,63},?)?)\), ?\} *\n"
    % {b"n": rb"(?:0|[1-9]\d{0,18})"},
    re.DOTALL,
)
_TEXT_STARTS = 12
_LONGEST = 2048
_EMPTY = np.empty(0, np.uint8)


class Numbers(NamedTuple):
    """What the bytes hold."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    flat: NDArray[Any]  # in C order; booleans as the bytes that hold them


def view(data: bytes | memoryview, shape: tuple[int, ...] | None = None) -> Numbers:
    """View real numbers of at most 64 bits.

    Nothing is copied but arrays in Fortran order, which are no larger than the bytes.

    Parameters
    ----------
    data : bytes or memoryview
        Version 1 or 2 of the format, any byte order.
    shape : tuple[int, ...] | None (default: None)
        The shape that is expected.

    Raises
    ------
    ValueError
        With the reason, one word of `header`, `shape` and `length`, and a sentence.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> np.save(file, np.array([[1, 2], [3, 4]], np.int16))
    >>> view(file.getvalue())
    Numbers(dtype=dtype('int16'), shape=(2, 2), flat=array([1, 2, 3, 4], dtype=int16))
    """
    head = bytes(data[:_LONGEST])
    start = head.find(b"\n", _TEXT_STARTS) + 1
    dtype, fortran, found = _parse(head[:start] or head[:32])
    if shape is not None and found != shape:
        raise ValueError("shape", f"is {found}, not {shape}")
    promised = start + math.prod(found) * dtype.itemsize
    if len(data) != promised:
        raise ValueError("length", f"is {len(data)} bytes, not {promised}")
    # Of a boolean's byte only its being zero is defined.
    stored = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    flat = np.frombuffer(data, stored, offset=start) if promised > start else _EMPTY
    if fortran:
        flat = flat.reshape(found, order="F").ravel()
    return Numbers(dtype, found, flat)


# Headers repeat from client to client; wrong ones raise, and so are not kept.
@lru_cache(maxsize=256)
def _parse(header: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    match = _HEADER.fullmatch(header)
    size = slice(8, 10) if header[6:7] == b"\x01" else slice(8, 12)
    length = int.from_bytes(header[size], "little")
    if match is None or length != len(header) - size.stop:
        raise ValueError("header", f"starts with {header[:32]!r}")
    descr, fortran, shape = (part.decode() for part in match.groups())
    numbers = tuple(int(number) for number in shape.split(",") if number.strip())
    return np.dtype(descr), fortran == "True", numbers
