"""The latest row of every client, kept up to date as single rows arrive.

In asynchronous training one arrival changes one row. The Gram matrix then changes in
one row and one column, a weighted sum in the few rows whose coefficients changed, and a
median by a few ranks at most. Nothing is computed before it is asked for.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma.engine import threads as parallel
from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.cpu import CpuStack, Span, in_lanes
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Columns, Float64, Kernel, Moments, Vector, pivot_of

__all__ = ["IncrementalStack"]

Row = Sequence[Array]

# A sum is brought up to date row by row while that reads less than a third of them.
_FEW = 3
# Coefficients that differ by less are the same: rounding of their common scale.
_SAME = 1e-12
# Columns of a block: of a row in float64, it stays in a core's cache.
_WIDTH = 2**14


class IncrementalStack(CpuStack):
    """n rows, replaced one at a time.

    Nothing drifts: a row's inner products are computed afresh when it arrives, and sums
    that are brought up to date are kept in float64.

    Parameters
    ----------
    n : int
        Number of clients.
    like : sequence of one-dimensional arrays
        One for each tensor of the model, for width and dtype.

    Examples
    --------
    >>> rows = IncrementalStack(3, [np.zeros(2)])
    >>> rows.replace(0, [np.array([3.0, 4.0])])
    >>> rows.replace(2, [np.array([1.0, 0.0])])
    >>> rows.moments.inner()
    array([[25.,  0.,  3.],
           [ 0.,  0.,  0.],
           [ 3.,  0.,  1.]])
    """

    def __init__(self, n: int, like: Row) -> None:
        super().__init__(
            [Layer(np.zeros((n, len(part)), Layer([part]).dtype)) for part in like]
        )
        self._products = np.zeros((n, n))
        self._fresh: set[int] = set()  # rows whose inner products are to be computed
        self._coefficients = np.zeros(n)
        self._sum: list[Float64] | None = None
        self._values: Vector | None = None  # that a median starts from

    def grow(self, n: int) -> None:
        """Make room for rows of clients to come."""
        more = n - self.n
        self.layers = [
            Layer(np.vstack([layer.rows, np.zeros((more, layer.width), layer.dtype)]))
            for layer in self.layers
        ]
        self._products = np.pad(self._products, (0, more))
        self._coefficients = np.pad(self._coefficients, (0, more))
        vars(self).pop("moments", None)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, of which there is one at least."""
        self._measure()
        self.layers = [Layer(np.asarray(layer.rows)[rows]) for layer in self.layers]
        self._products = self._products[np.ix_(rows, rows)]
        self._coefficients = np.zeros(len(rows))
        self._sum = None
        vars(self).pop("moments", None)

    def replace(self, i: int, row: Row) -> None:
        """Put a new row in the place of row i."""
        if self._sum is not None and self._coefficients[i]:
            self._add({i: -self._coefficients[i]}, self._sum)
        self._coefficients[i] = 0.0
        for layer, part in zip(self.layers, row, strict=True):
            np.copyto(layer.rows[i], part, casting="unsafe")
        self._fresh.add(i)
        vars(self).pop("moments", None)

    @property
    def has_moments(self) -> bool:
        """True: to bring them up to date takes one pass, as any other way would."""
        return True

    @cached_property
    def moments(self) -> Moments:
        """Inner products of the rows, about a pivot only where digits would be lost."""
        self._measure()
        if pivot_of(self._products) is None:
            return Moments(self._products.copy())
        return super().moments

    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel; from the last values, if it can find new ones near them."""
        if mixing is None and hasattr(kernel, "near"):
            return self.columns(kernel, mixing).vector
        return super().values(kernel, mixing)

    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Apply a kernel as in `values`, and measure."""
        near = getattr(kernel, "near", None)
        if mixing is not None or near is None:
            return super().columns(kernel, mixing)
        last, vector = self._values, self._empty()

        def value(k: int, a: int, b: int, block: Array) -> Array:
            values: Array = near(block, None if last is None else last[k][a:b])
            vector[k][a:b] = values
            return values

        self._values = vector
        return Columns(vector, self._deviations(value, mixing))

    def combine(self, coefficients: Float64) -> Vector:
        """The vector `coefficients @ rows`, from the last one where they are alike."""
        scale = _common_scale(coefficients, self._coefficients)
        wanted = coefficients / scale
        least = _SAME * np.abs(wanted).max(initial=0)
        changed = np.flatnonzero(np.abs(wanted - self._coefficients) > least)
        if _FEW * len(changed) > self.n:
            self._coefficients, self._sum = wanted, None
            return super().combine(coefficients)
        if self._sum is None:
            self._sum = [np.zeros(layer.width) for layer in self.layers]
            self._coefficients = np.zeros(self.n)
            changed = np.flatnonzero(wanted)
        changes = wanted[changed] - self._coefficients[changed]
        self._coefficients[changed] = wanted[changed]
        vector = self._empty()
        terms = dict(zip(changed.tolist(), changes, strict=True))
        self._add(terms, self._sum, scale, vector)
        return vector

    def _add(
        self,
        changes: Mapping[int, float],
        total: list[Float64],
        scale: float = 1.0,
        vector: Vector | None = None,
    ) -> None:
        """Add rows to a sum; write it times a scale into a vector, if there is one."""

        def lane(spans: list[Span]) -> None:
            for k, a, b in spans:
                rows, part = self.layers[k].rows, total[k][a:b]
                for i, change in changes.items():
                    part += rows[i][a:b].astype(np.float64) * change
                if vector is not None:
                    vector[k][a:b] = part * scale

        parallel.run(lane, in_lanes(list(self._spans(_WIDTH)), 1))

    def _measure(self) -> None:
        """Compute the inner products of rows that came since with all: one pass."""
        fresh = sorted(self._fresh)
        if not fresh:
            return

        def lane(spans: list[Span]) -> Float64:
            products = np.zeros((len(fresh), self.n))
            for k, a, b in spans:
                block = np.asarray(self.layers[k].rows)[:, a:b]
                products += block[fresh] @ block.T
            return products

        found = parallel.run(lane, in_lanes(list(self._spans(_WIDTH)), len(fresh)))
        self._products[fresh] = np.sum(found, axis=0)
        self._products[:, fresh] = self._products[fresh].T
        self._fresh = set()

    def state_dict(self) -> dict[str, Any]:
        """Give what `from_state` needs; the sum too, whose bits tell how it came."""
        return {
            "rows": [layer.rows for layer in self.layers],
            "products": self._products,
            "fresh": sorted(self._fresh),
            "sum": self._sum,
            "coefficients": self._coefficients,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "IncrementalStack":
        """Give the rows of which `state_dict` told."""
        latest = cls(0, [])
        latest.layers = [Layer(np.array(rows)) for rows in state["rows"]]
        latest._products = np.array(state["products"])
        latest._fresh = set(state["fresh"])
        latest._coefficients = np.array(state["coefficients"])
        if state["sum"] is not None:
            latest._sum = [np.array(part) for part in state["sum"]]
        return latest


def _common_scale(new: Float64, old: Float64) -> float:
    """Factor between two sets of coefficients, as most of them have it."""
    both = (new != 0) & (old != 0)
    ratio: Any = np.median(new[both] / old[both]) if both.any() else 1.0
    return float(ratio)
