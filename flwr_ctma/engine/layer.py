"""One tensor of the model from each client, wherever it is in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma.engine.buffers import Array, Float64
from flwr_ctma.engine.kernels import cpu_primitives
from flwr_ctma.engine.kernels.protocol import Combine, Read

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """One tensor of the model from each of n clients.

    Parameters
    ----------
    rows : sequence of n one-dimensional arrays of equal length, or an (n, d) array
        Views of any real dtype; they are never written to and never copied whole.
    origin : one-dimensional array, optional
        Subtracted from each row: the tensor that was sent, if the rows are replies.
    measured : bool (default: True)
        Whether the tensor counts in distances.
    scale : float (default: 1.0)
        The rows, less their origin, count times this.
    """

    rows: Sequence[Array] | Array
    origin: Array | None = None
    measured: bool = True
    scale: float = 1.0

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.rows[0])

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The dtype of results: float32 for floats of at most 32 bits, else float64."""
        small = np.issubdtype(self.rows[0].dtype, np.floating) and (
            self.rows[0].dtype.itemsize <= 4
        )
        return np.dtype(np.float32 if small else np.float64)

    def view(self, a: int, b: int) -> Array | None:
        """Return columns a to b without a copy, or None if that is not possible."""
        rows = self.rows
        moved = self.origin is not None or self.scale != 1.0
        if not isinstance(rows, np.ndarray) or moved:
            return None
        if rows.dtype != self.dtype or not rows.flags.aligned:
            return None
        if not rows[0].flags.c_contiguous:
            return None
        return rows[:, a:b]

    def load(self, a: int, b: int, out: Array, less: Array | None = None) -> Array:
        """Copy columns a to b of all rows, less the origin or another row, scaled."""
        self._read(a, b, self.origin if less is None else less, out)
        if self.scale != 1.0:
            out[: len(self.rows)] *= out.dtype.type(self.scale)
        return out

    def combine(self, a: int, b: int, coefficients: Float64, out: Array) -> None:
        """Write `coefficients @ rows` for columns a to b."""
        self._combine(a, b, self.origin, coefficients * self.scale, out)

    @cached_property
    def _combine(self) -> Combine:
        return cpu_primitives().combiner(self.rows, self.dtype)

    @cached_property
    def _read(self) -> Read:
        return cpu_primitives().reader(self.rows, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out the cached functions: they hold addresses of this process."""
        return Layer, (self.rows, self.origin, self.measured, self.scale)
