"""Rows in memory, visited in blocks of columns that stay in the cache."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from flwr_ctma.engine import threads as parallel
from flwr_ctma.engine.buffers import Array, Float64, scratch
from flwr_ctma.engine.kernels import cpu_primitives
from flwr_ctma.engine.kernels.numpy import CELL
from flwr_ctma.engine.kernels.protocol import CpuPrimitives, Strip
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Columns, Kernel, Stack, Vector, as_vector

__all__ = ["CpuStack", "Span", "in_lanes"]

Span = tuple[int, int, int]  # layer, first column, end

# Bytes of a block: it fits a core's share of the cache, and the time to start one call
# is small against the time the call takes. A block holds whole cells.
_BLOCK_BYTES = 2**20
# Columns of a block of a weighted sum, which reads every row once.
_SUM_WIDTH = 2**15
_MAX_LANES = 16
# Columns of a lane of inner products, at least.
_LANE_WIDTH = 2**14


class CpuStack(Stack):
    """n rows in memory, as layers of columns."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.layers[0].rows)

    @property
    def primitives(self) -> CpuPrimitives:
        """The inner loops: compiled, where Numba is installed."""
        return cpu_primitives()

    def products(self, pivot: int | None, scale: Float64 | None) -> Float64:
        """Return inner products of all rows over the measured layers."""
        if pivot is None and scale is None:
            return self.products_with(None)
        spans = [s for s in self.spans() if self.layers[s[0]].measured]
        return self._sum_products(
            self.n + (pivot is not None),
            None,
            in_lanes(spans, self.n),
            lambda span: Strip.of(self._block(*span, pivot, scale)),
        )

    def products_with(self, rows: Sequence[int] | None) -> Float64:
        """Return inner products of some of the rows, or all, with all, about zero.

        Where Numba is installed, the bits of a product depend on its two rows only.
        """
        layers = self.layers

        def strip(span: Span) -> Strip:
            k, a, b = span
            if layers[k].scale != 1.0:
                return Strip.of(self._block(*span))
            return Strip(layers[k].rows, a, b, layers[k].dtype, layers[k].origin)

        return self._sum_products(self.n, rows, self._long_lanes(), strip)

    def _long_lanes(self) -> list[list[Span]]:
        """Cut the measured columns into lanes that do not depend on the rows."""
        width = sum(layer.width for layer in self.layers if layer.measured)
        most = max(1, min(_MAX_LANES, width // _LANE_WIDTH))
        step = -(-width // (1 << most.bit_length() - 1))
        lanes: list[list[Span]] = [[]]
        free = step
        for k, layer in enumerate(self.layers):
            a = 0
            while layer.measured and a < layer.width:
                b = min(layer.width, a + -(-free // CELL) * CELL)
                lanes[-1].append((k, a, b))
                free -= b - a
                a = b
                if free <= 0:
                    lanes.append([])
                    free += step
        return [lane for lane in lanes if lane]

    def _sum_products(
        self,
        size: int,
        rows: Sequence[int] | None,
        lanes: list[list[Span]],
        strip: Callable[[Span], Strip],
    ) -> Float64:
        def lane(spans: list[Span]) -> Float64:
            return self.primitives.products(map(strip, spans), size, rows)

        shape = (size if rows is None else len(rows), size)
        return sum(parallel.run(lane, lanes), np.zeros(shape))

    def _block(
        self,
        k: int,
        a: int,
        b: int,
        pivot: int | None = None,
        scale: Float64 | None = None,
    ) -> Array:
        """Return columns of a layer, about a pivot and times a scale if given."""
        layer = self.layers[k]
        if pivot is None and scale is None:
            view = layer.view(a, b)
            if view is not None:
                return view
        out = scratch(self.n + (pivot is not None), b - a, layer.dtype)
        if scale is not None:
            return self._scaled_block(k, a, b, pivot, scale, out)
        if pivot is None:
            return layer.load(a, b, out)
        layer.load(a, b, out, less=layer.rows[pivot])
        centre = replace(layer, rows=[layer.rows[pivot]])
        centre.load(a, b, out[-1:])
        return out

    def _scaled_block(
        self, k: int, a: int, b: int, pivot: int | None, scale: Float64, out: Array
    ) -> Array:
        layer = self.layers[k]
        exact = layer.load(a, b, np.empty((self.n, b - a)))
        if pivot is not None:
            centre = exact[pivot].copy()
            exact = np.vstack([exact - centre, centre])
        np.multiply(exact, scale[:, None], out=out, casting="unsafe")
        return out

    def largest(self) -> Float64:
        """Return the largest absolute value of each row."""

        def lane(spans: list[Span]) -> Float64:
            most = np.zeros(self.n)
            for k, a, b in spans:
                block = scratch(self.n, b - a, np.dtype(np.float64))
                self.layers[k].load(a, b, block)
                np.maximum(most, np.abs(block).max(axis=1, initial=0.0), out=most)
            return most

        found = parallel.run(lane, in_lanes(list(self.spans()), 1))
        most: Float64 = np.max([*found, np.zeros(self.n)], axis=0)
        return most

    def combine(self, coefficients: Float64) -> Vector:
        """Return the vector `coefficients @ rows`, skipping rows that count 0."""
        vector = [np.zeros(layer.width, layer.dtype) for layer in self.layers]
        used = np.flatnonzero(coefficients)
        if not used.size:
            return vector
        few = 4 * used.size < self.n
        chosen = [
            replace(layer, rows=[layer.rows[int(i)] for i in used])
            for layer in self.layers
        ]

        def lane(spans: list[Span]) -> bool:
            finite = True
            for k, a, b in spans:
                part, block = vector[k][a:b], self.layers[k].view(a, b)
                if block is None or few:
                    chosen[k].combine(a, b, coefficients[used], part)
                else:
                    # `matmul` reads a view where it is; `dot` would copy it first.
                    np.matmul(coefficients.astype(part.dtype), block, out=part)
                finite &= bool(np.isfinite(part).all())
            return finite

        # Rows of another dtype are copied block by block; blocks of whole cells give
        # a column the same bits wherever a shard begins.
        plain = all(layer.rows[0].dtype == layer.dtype for layer in self.layers)
        spans = list(self.spans(_SUM_WIDTH if plain else None))
        if not all(parallel.run(lane, in_lanes(spans, 1))):
            self.check_finite()
        return vector

    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel block by block."""
        vector = self._empty()

        def lane(spans: list[Span]) -> bool:
            finite = True
            for k, a, b in spans:
                values = kernel.value(self._mixed(k, a, b, mixing), self.primitives)
                vector[k][a:b] = values
                finite &= bool(np.isfinite(values).all())
            return finite

        if not all(parallel.run(lane, in_lanes(list(self.spans()), 1))):
            self.check_finite()
        return vector

    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Apply a kernel block by block, and measure while a block is in the cache."""
        vector = self._empty()

        def visit(span: Span, block: Array, squares: Float64 | None) -> Array:
            k, a, b = span
            values: Array = kernel.value(block, self.primitives, squares)
            vector[k][a:b] = values
            return values

        return Columns(vector, self._measure(visit, mixing))

    def deviations(self, vector: Vector, mixing: Float64 | None) -> Float64:
        """Return the squared distance of each row to a vector."""

        def visit(span: Span, block: Array, squares: Float64 | None) -> Array:
            k, a, b = span
            middle: Array = vector[k][a:b]
            if squares is not None:
                squares += self.primitives.squares_apart(block, middle)
            return middle

        return self._measure(visit, mixing)

    def _measure(
        self,
        visit: Callable[[Span, Array, Float64 | None], Array],
        mixing: Float64 | None,
    ) -> Float64:
        """Sum the squared distances that visits to blocks add, over measured layers.

        A visit gets None in place of the sum for a layer that is not measured, and
        returns the values of the columns.
        """
        rows = self.n if mixing is None else len(mixing)

        def lane(spans: list[Span]) -> tuple[Float64, bool]:
            total = np.zeros(rows)
            finite = True
            for span in spans:
                measured = self.layers[span[0]].measured
                block = self._mixed(*span, mixing)
                middle = visit(span, block, total if measured else None)
                finite &= measured or bool(np.isfinite(middle).all())
            return total, finite and bool(np.isfinite(total).all())

        found = parallel.run(lane, in_lanes(list(self.spans()), 1))
        if not all(finite for _, finite in found):
            self.check_finite()
        return sum((total for total, _ in found), np.zeros(rows))

    def shares(self, kernel: Kernel, mixing: Float64 | None) -> Float64:
        """Return the mean over coordinates of each row's weight in a kernel."""

        def visit(span: Span) -> Float64:
            block = self._mixed(*span, mixing)
            total: Float64 = kernel.weights(block).sum(axis=1)
            return total

        found = parallel.run(visit, self.spans())
        total: Float64 = np.sum(found, axis=0) / sum(p.width for p in self.layers)
        return total

    def take(self, rows: "np.ndarray[Any, Any]") -> "CpuStack":
        """Return a stack of views of some of the rows."""
        return CpuStack(
            [
                replace(layer, rows=[layer.rows[i] for i in rows])
                for layer in self.layers
            ]
        )

    def split(self) -> Sequence["CpuStack"]:
        """Return a stack for each layer, without a copy of the rows."""
        if len(self.layers) == 1:
            return [self]
        return [CpuStack([replace(layer, measured=True)]) for layer in self.layers]

    def from_vectors(self, vectors: Sequence[Vector]) -> "CpuStack":
        """Return a stack of vectors, with the same layers."""
        return CpuStack(
            [
                Layer([vector[k] for vector in vectors], measured=layer.measured)
                for k, layer in enumerate(self.layers)
            ]
        )

    def append(self, vector: Sequence[Any]) -> "CpuStack":
        """Return a stack with one more row, given relative to the origins."""
        appended = []
        for layer, part in zip(self.layers, vector, strict=True):
            row = as_vector(part, layer.width)
            if layer.scale != 1.0:
                row = row / layer.scale
            if layer.origin is not None:
                row = row + layer.origin
            appended.append(replace(layer, rows=[*layer.rows, row]))
        return CpuStack(appended)

    def spans(self, width: int | None = None) -> Iterator[Span]:
        """Yield blocks of columns, which do not depend on the number of cores."""
        for k, layer in enumerate(self.layers):
            bytes_per_column = self.n * layer.dtype.itemsize
            cells = max(1, _BLOCK_BYTES // bytes_per_column // CELL)
            step = width or cells * CELL
            for a in range(0, layer.width, step):
                yield k, a, min(a + step, layer.width)

    def _mixed(self, k: int, a: int, b: int, mixing: Float64 | None) -> Array:
        block = self._block(k, a, b)
        if mixing is None:
            return block
        out = scratch.beside(block, len(mixing))
        mixed: Array = np.matmul(mixing.astype(block.dtype), block, out=out)
        return mixed

    def _empty(self) -> Vector:
        return [np.empty(layer.width, layer.dtype) for layer in self.layers]


def in_lanes(spans: list[Span], size: int) -> list[list[Span]]:
    """Deal blocks into lanes: neighbouring blocks that one thread sums in order.

    There are as many lanes as keep their (size, size) sums small against the rows.
    """
    columns = sum(b - a for _, a, b in spans)
    affordable = max(1, columns // (32 * size))
    most = max(1, min(_MAX_LANES, affordable, len(spans)))
    count = 1 << most.bit_length() - 1  # a power of two, as the number of cores is
    bounds = np.linspace(0, len(spans), count + 1).astype(int)
    return [spans[i:j] for i, j in pairwise(bounds)]
