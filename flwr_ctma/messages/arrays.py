"""Flower's arrays from NumPy's and back, as fast as their bytes can be copied.

Flower writes and reads them with `numpy.save` and `numpy.load`, which spell and parse
the header as Python source, at every array of every message. Headers repeat.
"""

from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from flwr_ctma.compat import make_array
from flwr_ctma.messages import npy

__all__ = ["numbers", "records_of", "to_array"]

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)


def to_array(values: NDArray[Any]) -> Array:
    """Make the array that Flower makes of an ndarray, byte by byte.

    Arrays in Fortran order become C order, which holds the same numbers.

    Raises
    ------
    ValueError
        For Python objects, which do not travel.

    Examples
    --------
    >>> to_array(np.arange(3.0)) == Array(np.arange(3.0))
    True
    """
    values = np.asarray(values, order="C")
    name, header = _header(values.dtype, values.shape)
    # As bytes, for buffers have no notion of bfloat16 or of dates.
    data = b"".join((header, values.reshape(-1).view(np.uint8).data))
    return make_array(name, values.shape, "numpy.ndarray", data)


def numbers(array: Array) -> NDArray[Any]:
    """View an array where its bytes are; or as Flower reads it, what is not plain.

    A view is read-only.

    Examples
    --------
    >>> numbers(Array(np.arange(3.0)))
    array([0., 1., 2.])
    """
    try:
        dtype, shape, flat = npy.view(array.data)
        return flat.view(dtype).reshape(shape)
    except ValueError:
        return array.numpy()


def records_of(content: RecordDict, kind: type[R]) -> dict[str, R]:
    """Return the records of a kind by name, as `content.array_records` does.

    Flower's properties check each record twice and copy changes back, which takes ten
    times as long.

    Examples
    --------
    >>> records_of(RecordDict({"sizes": MetricRecord({"n": 3})}), MetricRecord)
    {'sizes': {'n': 3}}
    """
    return {name: one for name, one in content.items() if isinstance(one, kind)}


@lru_cache(maxsize=256)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Return the name of a dtype, and the header of an array in `.npy` bytes."""
    if dtype.hasobject:
        raise ValueError(f"{dtype} holds Python objects, which do not travel")
    buffer = BytesIO()
    descr = npy_format.dtype_to_descr(dtype)
    npy_format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return str(dtype), buffer.getvalue()
