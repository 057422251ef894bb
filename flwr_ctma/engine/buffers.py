"""Memory that each thread uses again from block to block."""

import threading
from typing import Any

import numpy as np

__all__ = ["Array", "scratch"]

Array = np.ndarray[Any, np.dtype[Any]]


class _Scratch(threading.local):
    """Two arrays that a thread uses again from block to block, and from call to call.

    New ones would be new pages, which cost more to get than to fill.
    """

    def __init__(self) -> None:
        self._held = [np.empty(0), np.empty(0)]

    def __call__(self, rows: int, width: int, dtype: "np.dtype[Any]") -> Array:
        """Give the first array, in a shape."""
        return self._shaped(0, rows, width, dtype)

    def beside(self, block: Array, rows: int | None = None) -> Array:
        """Give the array that the block is not in, as wide as the block."""
        n, width = block.shape
        slot = int(block.base is self._held[0])
        return self._shaped(slot, rows or n, width, block.dtype)

    def copy(self, block: Array) -> Array:
        """Copy a block that is to be overwritten."""
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
