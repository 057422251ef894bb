"""Rows in memory, visited in blocks of columns that stay in the cache."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from flwr_ctma.engine import threads as parallel
from flwr_ctma.engine.buffers import Array, scratch
from flwr_ctma.engine.kernels import kernels
from flwr_ctma.engine.kernels.numpy import CELL
from flwr_ctma.engine.layer import Panel
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

    def __init__(self, panels: Sequence[Panel]) -> None:
        self.panels = list(panels)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.panels[0].rows)

    def products(self, pivot: int | None, scale: Float64 | None) -> Float64:
        """Inner products of all rows over the measured panels."""
        size = self.n + (pivot is not None)

        def lane(spans: list[Span]) -> Float64:
            blocks = (self._rows(*span, pivot, scale) for span in spans)
            total: Float64 = kernels().products(blocks, size)
            return total

        spans = [span for span in self._spans() if self.panels[span[0]].measured]
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
        panel = self.panels[k]
        if pivot is None and scale is None:
            view = panel.view(a, b)
            if view is not None:
                return view
        out = scratch(self.n + (pivot is not None), b - a, panel.dtype)
        if scale is not None:
            return self._scaled_rows(k, a, b, pivot, scale, out)
        if pivot is None:
            return panel.load(a, b, out)
        panel.load(a, b, out, less=panel.rows[pivot])
        origin = 0 if panel.origin is None else panel.origin[a:b]
        np.subtract(panel.rows[pivot][a:b], origin, out=out[-1], casting="unsafe")
        return out

    def _scaled_rows(
        self, k: int, a: int, b: int, pivot: int | None, scale: Float64, out: Array
    ) -> Array:
        panel = self.panels[k]
        exact = panel.load(a, b, np.empty((self.n, b - a)))
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
                self.panels[k].load(a, b, block)
                np.maximum(most, np.abs(block).max(axis=1, initial=0.0), out=most)
            return most

        found = parallel.run(lane, in_lanes(list(self._spans()), 1))
        most: Float64 = np.max([*found, np.zeros(self.n)], axis=0)
        return most

    def combine(self, coefficients: Float64) -> Vector:
        """The vector `coefficients @ rows`, without the rows that count nothing."""
        vector = [np.zeros(panel.width, panel.dtype) for panel in self.panels]
        used = np.flatnonzero(coefficients)
        if not used.size:
            return vector
        few = 4 * used.size < self.n
        chosen = [
            Panel([panel.rows[int(i)] for i in used], panel.origin)
            for panel in self.panels
        ]

        def lane(spans: list[Span]) -> None:
            for k, a, b in spans:
                # `matmul` reads a view where it is; `dot` would copy it first.
                c = coefficients.astype(vector[k].dtype)
                block = None if few else self.panels[k].view(a, b)
                if block is None:
                    c = c[used]
                    block = scratch(len(used), b - a, c.dtype)
                    chosen[k].load(a, b, block)
                np.matmul(c, block, out=vector[k][a:b])

        plain = all(panel.view(0, 1) is not None for panel in self.panels)
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
                if self.panels[k].measured:
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
        total: Float64 = np.sum(found, axis=0) / sum(p.width for p in self.panels)
        return total

    def take(self, rows: "np.ndarray[Any, Any]") -> "CpuStack":
        """Views of some of the rows."""
        return CpuStack(
            [
                Panel([panel.rows[i] for i in rows], panel.origin, panel.measured)
                for panel in self.panels
            ]
        )

    def hold(self, vectors: Sequence[Vector]) -> "CpuStack":
        """Vectors as rows of the same panels."""
        return CpuStack(
            [
                Panel([vector[k] for vector in vectors], measured=panel.measured)
                for k, panel in enumerate(self.panels)
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
        return [np.empty(panel.width, panel.dtype) for panel in self.panels]

    def _spans(self, width: int | None = None) -> Iterator[Span]:
        """Blocks of columns, the same whatever the number of cores."""
        for k, panel in enumerate(self.panels):
            bytes_per_column = self.n * panel.dtype.itemsize
            cells = max(1, _BLOCK_BYTES // bytes_per_column // CELL)
            step = width or cells * CELL
            for a in range(0, panel.width, step):
                yield k, a, min(a + step, panel.width)


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
