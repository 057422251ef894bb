"""Rows in memory, visited in blocks of columns that stay in the cache."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from flwr_ctma.engine import threads as parallel
from flwr_ctma.engine.buffers import Array, scratch
from flwr_ctma.engine.kernels import kernels
from flwr_ctma.engine.kernels.numpy import CELL
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Columns, Float64, Kernel, Stack, Vector

__all__ = ["CpuStack", "Span", "in_lanes"]

Span = tuple[int, int, int]  # panel, first column, last column

# Of a block: it fits a core's share of the cache, and the time to start one call is
# small against the time the call takes. It holds whole cells.
_BLOCK_BYTES = 2**20
# Of a weighted sum of plain rows, which BLAS cuts into blocks of its own.
_SUM_WIDTH = 2**16
_MAX_LANES = 16


class CpuStack(Stack):
    """n rows in memory, as panels of columns."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.layers[0].rows)

    def products(self, pivot: int | None, scale: Float64 | None) -> Float64:
        """Inner products of all rows over the measured panels."""
        size = self.n + (pivot is not None)

        def lane(spans: list[Span]) -> Float64:
            blocks = (self._rows(*span, pivot, scale) for span in spans)
            total: Float64 = kernels().products(blocks, size)
            return total

        spans = [span for span in self._spans() if self.layers[span[0]].measured]
        lanes = in_lanes(spans, size)
        return sum(parallel.run(lane, lanes), np.zeros((size, size)))

    def _rows(
        self,
        k: int,
        a: int,
        b: int,
        pivot: int | None,
        scale: Float64 | None,
    ) -> Array:
        layer = self.layers[k]
        if pivot is None and scale is None:
            view = layer.view(a, b)
            if view is not None:
                return view
        out = scratch(self.n + (pivot is not None), b - a, layer.dtype)
        if scale is not None:
            return self._scaled_rows(k, a, b, pivot, scale, out)
        if pivot is None:
            return layer.load(a, b, out)
        layer.load(a, b, out, less=layer.rows[pivot])
        origin = 0 if layer.origin is None else layer.origin[a:b]
        np.subtract(layer.rows[pivot][a:b], origin, out=out[-1], casting="unsafe")
        return out

    def _scaled_rows(
        self, k: int, a: int, b: int, pivot: int | None, scale: Float64, out: Array
    ) -> Array:
        layer = self.layers[k]
        exact = layer.load(a, b, np.empty((self.n, b - a)))
        centre = 0.0 if pivot is None else exact[pivot].copy()
        if pivot is not None:
            exact = np.vstack([exact - centre, centre])
        np.multiply(exact, scale[:, None], out=out, casting="unsafe")
        return out

    def largest(self) -> Float64:
        """The largest absolute value of each row."""

        def lane(spans: list[Span]) -> Float64:
            most = np.zeros(self.n)
            for k, a, b in spans:
                block = scratch(self.n, b - a, np.dtype(np.float64))
                self.layers[k].load(a, b, block)
                np.maximum(most, np.abs(block).max(axis=1, initial=0.0), out=most)
            return most

        found = parallel.run(lane, in_lanes(list(self._spans()), 1))
        most: Float64 = np.max([*found, np.zeros(self.n)], axis=0)
        return most

    def combine(self, coefficients: Float64) -> Vector:
        """The vector `coefficients @ rows`, without the rows that count nothing."""
        vector = [np.zeros(layer.width, layer.dtype) for layer in self.layers]
        used = np.flatnonzero(coefficients)
        if not used.size:
            return vector
        few = 4 * used.size < self.n
        chosen = [
            Layer([layer.rows[int(i)] for i in used], layer.origin)
            for layer in self.layers
        ]

        def lane(spans: list[Span]) -> None:
            for k, a, b in spans:
                # `matmul` reads a view where it is; `dot` would copy it first.
                c = coefficients.astype(vector[k].dtype)
                block = None if few else self.layers[k].view(a, b)
                if block is None:
                    c = c[used]
                    block = scratch(len(used), b - a, c.dtype)
                    chosen[k].load(a, b, block)
                np.matmul(c, block, out=vector[k][a:b])

        plain = all(layer.view(0, 1) is not None for layer in self.layers)
        parallel.run(
            lane, in_lanes(list(self._spans(_SUM_WIDTH if plain else None)), 1)
        )
        if not all(np.isfinite(part).all() for part in vector):
            self.check_finite()
        return vector

    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel block by block."""
        vector = self._empty()

        def lane(spans: list[Span]) -> bool:
            finite = True
            for k, a, b in spans:
                values = kernel.value(self._mixed(k, a, b, mixing))
                vector[k][a:b] = values
                finite &= bool(np.isfinite(values).all())
            return finite

        if not all(parallel.run(lane, in_lanes(list(self._spans()), 1))):
            self.check_finite()
        return vector

    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Apply a kernel block by block, measuring while the block is in the cache."""
        vector = self._empty()

        def value(k: int, a: int, b: int, block: Array) -> Array:
            values: Array = kernel.value(block)
            vector[k][a:b] = values
            return values

        return Columns(vector, self._deviations(value, mixing))

    def deviations(self, vector: Vector, mixing: Float64 | None) -> Float64:
        """Squared distance of each row to a vector."""
        return self._deviations(lambda k, a, b, block: vector[k][a:b], mixing)

    def _deviations(
        self,
        centre: "Callable[[int, int, int, Array], Array]",
        mixing: Float64 | None,
    ) -> Float64:
        rows = self.n if mixing is None else len(mixing)

        def lane(spans: list[Span]) -> tuple[Float64, bool]:
            total = np.zeros(rows)
            finite = True
            for k, a, b in spans:
                block = self._mixed(k, a, b, mixing)
                middle = centre(k, a, b, block)
                if self.layers[k].measured:
                    total += kernels().squares_apart(block, middle)
                else:
                    finite &= bool(np.isfinite(middle).all())
            return total, finite and bool(np.isfinite(total).all())

        found = parallel.run(lane, in_lanes(list(self._spans()), 1))
        if not all(finite for _, finite in found):
            self.check_finite()
        return sum((total for total, _ in found), np.zeros(rows))

    def shares(self, kernel: Kernel, mixing: Float64 | None) -> Float64:
        """Mean over coordinates of the weight that a kernel gives to each row."""

        def visit(span: Span) -> Float64:
            block = self._mixed(*span, mixing)
            total: Float64 = kernel.weights(block).sum(axis=1)
            return total

        found = parallel.run(visit, self._spans())
        total: Float64 = np.sum(found, axis=0) / sum(p.width for p in self.layers)
        return total

    def take(self, rows: "np.ndarray[Any, Any]") -> "CpuStack":
        """Views of some of the rows."""
        return CpuStack(
            [
                Layer([layer.rows[i] for i in rows], layer.origin, layer.measured)
                for layer in self.layers
            ]
        )

    def from_vectors(self, vectors: Sequence[Vector]) -> "CpuStack":
        """Vectors as rows of the same panels."""
        return CpuStack(
            [
                Layer([vector[k] for vector in vectors], measured=layer.measured)
                for k, layer in enumerate(self.layers)
            ]
        )

    def _mixed(self, k: int, a: int, b: int, mixing: Float64 | None) -> Array:
        block = self._rows(k, a, b, None, None)
        if mixing is None:
            return block
        out = scratch.beside(block, len(mixing))
        mixed: Array = np.matmul(mixing.astype(block.dtype), block, out=out)
        return mixed

    def _empty(self) -> Vector:
        return [np.empty(layer.width, layer.dtype) for layer in self.layers]

    def _spans(self, width: int | None = None) -> Iterator[Span]:
        """Blocks of columns, the same whatever the number of cores."""
        for k, layer in enumerate(self.layers):
            bytes_per_column = self.n * layer.dtype.itemsize
            cells = max(1, _BLOCK_BYTES // bytes_per_column // CELL)
            step = width or cells * CELL
            for a in range(0, layer.width, step):
                yield k, a, min(a + step, layer.width)


def in_lanes(spans: list[Span], size: int) -> list[list[Span]]:
    """Deal blocks into lanes of neighbours, each summed in order by one thread.

    As many lanes as leave their (size, size) sums small against the rows.
    """
    columns = sum(b - a for _, a, b in spans)
    affordable = max(1, columns // (32 * size))
    most = max(1, min(_MAX_LANES, affordable, len(spans)))
    count = 1 << most.bit_length() - 1  # a power of two, as the number of cores is
    bounds = np.linspace(0, len(spans), count + 1).astype(int)
    return [spans[i:j] for i, j in pairwise(bounds)]
