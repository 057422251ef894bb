"""The latest row of every client, kept up to date as single rows arrive.

In asynchronous training one arrival changes one row. The Gram matrix then changes in
one row and one column, and a weighted sum in the few rows whose coefficients changed.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma import parallel
from flwr_ctma.cpu import Array, CpuStack, Panel, Span, in_lanes
from flwr_ctma.stack import Float64, Moments, Vector, pivot_of

__all__ = ["Latest"]

# A sum is brought up to date row by row while that reads less than a third of them.
_FEW = 3
# Coefficients that differ by less are the same: rounding of their common scale.
_SAME = 1e-12
# Columns of a sum in float64 that stay in a core's cache while rows are added.
_SUM_WIDTH = 2**14


class Latest(CpuStack):
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
    >>> rows = Latest(3, [np.zeros(2)])
    >>> rows.replace(0, [np.array([3.0, 4.0])])
    >>> rows.replace(2, [np.array([1.0, 0.0])])
    >>> rows.moments.inner()
    array([[25.,  0.,  3.],
           [ 0.,  0.,  0.],
           [ 3.,  0.,  1.]])
    """

    def __init__(self, n: int, like: Sequence[Array]) -> None:
        super().__init__(
            [Panel(np.zeros((n, len(part)), Panel([part]).dtype)) for part in like]
        )
        self._products = np.zeros((n, n))
        self._sum = [np.zeros(panel.width) for panel in self.panels]
        self._coefficients = np.zeros(n)

    def grow(self, n: int) -> None:
        """Make room for rows of clients to come."""
        more = n - self.n
        self.panels = [
            Panel(np.vstack([panel.rows, np.zeros((more, panel.width), panel.dtype)]))
            for panel in self.panels
        ]
        self._products = np.pad(self._products, (0, more))
        self._coefficients = np.pad(self._coefficients, (0, more))
        vars(self).pop("moments", None)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, of which there is one at least."""
        self.panels = [Panel(np.asarray(panel.rows)[rows]) for panel in self.panels]
        self._products = self._products[np.ix_(rows, rows)]
        self._sum = [np.zeros(panel.width) for panel in self.panels]
        self._coefficients = np.zeros(len(rows))
        vars(self).pop("moments", None)

    def replace(self, i: int, row: Sequence[Array]) -> None:
        """Put a new row in the place of row i: one pass over all rows."""
        coefficient = self._coefficients[i]

        def lane(spans: list[Span]) -> Float64:
            products = np.zeros(self.n)
            for k, a, b in spans:
                block = np.asarray(self.panels[k].rows)[:, a:b]
                new = np.asarray(row[k][a:b], block.dtype)
                if coefficient:
                    change = np.subtract(new, block[i], dtype=np.float64)
                    self._sum[k][a:b] += coefficient * change
                block[i] = new
                products += block @ new
            return products

        found = parallel.run(lane, in_lanes(list(self._spans()), 1))
        self._products[i] = self._products[:, i] = np.sum(found, axis=0)
        vars(self).pop("moments", None)

    @property
    def has_moments(self) -> bool:
        """True: they are kept up to date."""
        return True

    @cached_property
    def moments(self) -> Moments:
        """Inner products of the rows, about a pivot only where digits would be lost."""
        if pivot_of(self._products) is None:
            return Moments(self._products.copy())
        return super().moments

    def combine(self, coefficients: Float64) -> Vector:
        """The vector `coefficients @ rows`, from the last one where they are alike."""
        scale = _common_scale(coefficients, self._coefficients)
        wanted = coefficients / scale
        changed = np.flatnonzero(
            np.abs(wanted - self._coefficients) > _SAME * np.abs(wanted).max(initial=0)
        )
        if _FEW * len(changed) > self.n:
            self._sum = [part.astype(np.float64) for part in super().combine(wanted)]
            self._coefficients = wanted.copy()
            changed = changed[:0]
        changes = wanted[changed] - self._coefficients[changed]
        self._coefficients[changed] = wanted[changed]
        vector = self._empty()

        def lane(spans: list[Span]) -> None:
            for k, a, b in spans:
                total = self._sum[k][a:b]
                for i, change in zip(changed, changes, strict=True):
                    row = self.panels[k].rows[int(i)][a:b]
                    total += np.multiply(row, change, dtype=np.float64)
                np.multiply(total, scale, out=vector[k][a:b], casting="unsafe")

        parallel.run(lane, in_lanes(list(self._spans(_SUM_WIDTH)), 1))
        return vector

    def state_dict(self) -> dict[str, Any]:
        """Give what `from_state` needs; the sum too, whose bits tell how it came."""
        return {
            "rows": [panel.rows for panel in self.panels],
            "products": self._products,
            "sum": self._sum,
            "coefficients": self._coefficients,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Latest":
        """Give the rows of which `state_dict` told."""
        latest = cls(0, [])
        latest.panels = [Panel(np.array(rows)) for rows in state["rows"]]
        latest._products = np.array(state["products"])
        latest._sum = [np.array(part) for part in state["sum"]]
        latest._coefficients = np.array(state["coefficients"])
        return latest


def _common_scale(new: Float64, old: Float64) -> float:
    """Factor between two sets of coefficients, as most of them have it."""
    both = (new != 0) & (old != 0)
    ratio: Any = np.median(new[both] / old[both]) if both.any() else 1.0
    return float(ratio)
