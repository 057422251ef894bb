"""One tensor of the model from each client, where it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.kernels import kernels
from flwr_ctma.engine.kernels.numpy import Reader

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """One tensor of the model from each of n clients.

    Parameters
    ----------
    rows : sequence of n one-dimensional arrays of equal length, or an (n, d) array
        Views of any real dtype; they are never written to and never copied whole.
    origin : one-dimensional array, optional
        Subtracted from each row: what was sent, if the rows are what came back.
    measured : bool (default: True)
        Whether the tensor counts in distances.
    """

    rows: Sequence[Array] | Array
    origin: Array | None = None
    measured: bool = True

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.rows[0])

    @property
    def dtype(self) -> "np.dtype[Any]":
        """What is computed in: float32 for the smaller floats, otherwise float64."""
        small = np.issubdtype(self.rows[0].dtype, np.floating) and (
            self.rows[0].dtype.itemsize <= 4
        )
        return np.dtype(np.float32 if small else np.float64)

    def view(self, a: int, b: int) -> Array | None:
        """Columns a to b without a copy, where the panel is a plain matrix."""
        rows = self.rows
        if not isinstance(rows, np.ndarray) or self.origin is not None:
            return None
        if rows.dtype != self.dtype or not rows.flags.aligned:
            return None
        if not rows[0].flags.c_contiguous:
            return None
        return rows[:, a:b]

    def load(self, a: int, b: int, out: Array, less: Array | None = None) -> Array:
        """Copy columns a to b of all rows, less the origin or less another row."""
        self._read(a, b, self.origin if less is None else less, out)
        return out

    @cached_property
    def _read(self) -> Reader:
        reader: Reader = kernels().reader(self.rows, self.dtype)
        return reader

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out how the rows are read: it knows where they are in this process."""
        return Layer, (self.rows, self.origin, self.measured)
