"""Array types, and memory that each thread reuses from block to block."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Float64", "scratch"]

Array = np.ndarray[Any, np.dtype[Any]]
Float64 = NDArray[np.float64]


class _Scratch(threading.local):
    """Two arrays that a thread reuses from block to block and from call to call.

    New arrays would be new pages, which cost more to get than to fill.
    """

    def __init__(self) -> None:
        self._held = [np.empty(0), np.empty(0)]

    def __call__(self, rows: int, width: int, dtype: "np.dtype[Any]") -> Array:
        """Return the first array, in a shape."""
        return self._shaped(0, rows, width, dtype)

    def beside(self, block: Array, rows: int | None = None) -> Array:
        """Return the array that does not hold the block, as wide as the block."""
        n, width = block.shape
        slot = int(block.base is self._held[0])
        return self._shaped(slot, rows or n, width, block.dtype)

    def copy(self, block: Array) -> Array:
        """Return a copy of a block, to overwrite."""
        copy = self.beside(block)
        np.copyto(copy, block)
        return copy

    def _shaped(
        self, slot: int, rows: int, width: int, dtype: "np.dtype[Any]"
    ) -> Array:
        size = rows * width
        if self._held[slot].size < size or self._held[slot].dtype != dtype:
            self._held[slot] = np.empty(size, dtype)
        return self._held[slot][:size].reshape(rows, width)


scratch = _Scratch()
