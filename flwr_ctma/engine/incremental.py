"""A stack of the latest row of every client, updated one row at a time.

In asynchronous training one arrival changes one row. Then the Gram matrix changes in
one row and one column, a weighted sum in the few rows whose coefficients changed, and a
median by a few ranks at most. Nothing is computed before it is needed.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma.engine import threads as parallel
from flwr_ctma.engine.buffers import Array, Float64
from flwr_ctma.engine.cpu import CpuStack, Span, in_lanes
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Columns, Kernel, Moments, Vector, pivot_of

__all__ = ["IncrementalStack"]

Row = Sequence[Array]

# A sum is updated row by row while that reads less than a third of the rows.
_FEW = 3
# Coefficients that differ by less count as equal: their common scale is rounded.
_SAME = 1e-12
# Columns of a block: a row of a block in float64 stays in a core's cache.
_WIDTH = 2**14


class IncrementalStack(CpuStack):
    """n rows, replaced one at a time.

    Rounding errors do not build up: a row's inner products are computed anew when it
    arrives, and updated sums are kept in float64.

    Parameters
    ----------
    n : int
        Number of clients.
    like : sequence of one-dimensional arrays
        One for each tensor of the model: width and dtype are used.

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
        self._fresh: set[int] = set()  # rows whose inner products are not computed yet
        self._coefficients = np.zeros(n)
        self._sum: list[Float64] | None = None
        self._values: Vector | None = None  # the guess of the next median

    def grow(self, n: int) -> None:
        """Append rows of zeros, up to n rows."""
        more = n - self.n
        self.layers = [
            Layer(np.vstack([layer.rows, np.zeros((more, layer.width), layer.dtype)]))
            for layer in self.layers
        ]
        self._products = np.pad(self._products, (0, more))
        self._coefficients = np.pad(self._coefficients, (0, more))
        vars(self).pop("moments", None)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows except these; at least one must stay."""
        self._update_products()
        self.layers = [Layer(np.asarray(layer.rows)[rows]) for layer in self.layers]
        self._products = self._products[np.ix_(rows, rows)]
        self._coefficients = np.zeros(len(rows))
        self._sum = None
        vars(self).pop("moments", None)

    def replace(self, i: int, row: Row) -> None:
        """Replace row i."""
        if self._sum is not None and self._coefficients[i]:
            self._add({i: -self._coefficients[i]}, self._sum)
        self._coefficients[i] = 0.0
        for layer, part in zip(self.layers, row, strict=True):
            np.copyto(layer.rows[i], part, casting="unsafe")
        self._fresh.add(i)
        vars(self).pop("moments", None)

    @property
    def has_moments(self) -> bool:
        """True: updating them takes one pass, as any other way to distances does."""
        return True

    @cached_property
    def moments(self) -> Moments:
        """Inner products of the rows, about a pivot only where digits would be lost."""
        self._update_products()
        if pivot_of(self._products) is None:
            return Moments(self._products.copy())
        return super().moments

    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel, starting from the last values if it can use them."""
        if mixing is None and hasattr(kernel, "near"):
            return self.columns(kernel, mixing).vector
        return super().values(kernel, mixing)

    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Apply a kernel as in `values`, and measure."""
        near = getattr(kernel, "near", None)
        if mixing is not None or near is None:
            return super().columns(kernel, mixing)
        last, vector = self._values, self._empty()

        def visit(span: Span, block: Array, squares: Float64 | None) -> Array:
            k, a, b = span
            guess = None if last is None else last[k][a:b]
            values: Array = near(guess, block, self.primitives, squares)
            vector[k][a:b] = values
            return values

        self._values = vector
        return Columns(vector, self._measure(visit, mixing))

    def combine(self, coefficients: Float64) -> Vector:
        """Return the vector `coefficients @ rows`, from the last one if cheap."""
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
        """Add rows to a sum, and write it times a scale into a vector if given."""

        def lane(spans: list[Span]) -> None:
            for k, a, b in spans:
                rows, part = self.layers[k].rows, total[k][a:b]
                for i, change in changes.items():
                    part += rows[i][a:b].astype(np.float64) * change
                if vector is not None:
                    vector[k][a:b] = part * scale

        parallel.run(lane, in_lanes(list(self.spans(_WIDTH)), 1))

    def _update_products(self) -> None:
        """Compute the inner products of new rows with all rows: one pass."""
        fresh = sorted(self._fresh)
        if not fresh:
            return

        def lane(spans: list[Span]) -> Float64:
            products = np.zeros((len(fresh), self.n))
            for k, a, b in spans:
                block = np.asarray(self.layers[k].rows)[:, a:b]
                products += block[fresh] @ block.T
            return products

        found = parallel.run(lane, in_lanes(list(self.spans(_WIDTH)), len(fresh)))
        self._products[fresh] = np.sum(found, axis=0)
        self._products[:, fresh] = self._products[fresh].T
        self._fresh = set()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `from_state`, with the sum as it was rounded."""
        return {
            "rows": [layer.rows for layer in self.layers],
            "products": self._products,
            "fresh": sorted(self._fresh),
            "sum": self._sum,
            "coefficients": self._coefficients,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "IncrementalStack":
        """Return the stack that `state_dict` described."""
        latest = cls(0, [])
        latest.layers = [Layer(np.array(rows)) for rows in state["rows"]]
        latest._products = np.array(state["products"])
        latest._fresh = set(state["fresh"])
        latest._coefficients = np.array(state["coefficients"])
        if state["sum"] is not None:
            latest._sum = [np.array(part) for part in state["sum"]]
        return latest


def _common_scale(new: Float64, old: Float64) -> float:
    """Return the median ratio of two sets of coefficients."""
    both = (new != 0) & (old != 0)
    ratio: Any = np.median(new[both] / old[both]) if both.any() else 1.0
    return float(ratio)
