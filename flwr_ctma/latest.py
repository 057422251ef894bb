"""The latest row of every client, kept up to date as single rows arrive.

In asynchronous training one arrival changes one row. The Gram matrix then changes in
one row and one column, and a weighted sum in the few rows whose coefficients changed.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma import parallel
from flwr_ctma.cpu import Array, CpuStack, Panel
from flwr_ctma.stack import Float64, Moments, Vector, pivot_of

__all__ = ["Latest"]

# A sum is brought up to date row by row while that reads less than a third of them.
_FEW = 3
# Coefficients that differ by less are the same: rounding of their common scale.
_SAME = 1e-12


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
        self._add(i, -self._coefficients[i])
        for panel, part in zip(self.panels, row, strict=True):
            panel.rows[i][:] = part
        self._add(i, self._coefficients[i])

        def strip(span: tuple[int, int, int]) -> Float64:
            k, a, b = span
            block = np.asarray(self.panels[k].rows)[:, a:b]
            products: Float64 = (block @ block[i]).astype(np.float64)
            return products

        found = parallel.run(strip, self._spans())
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
        else:
            for i in changed:
                self._add(int(i), wanted[i] - self._coefficients[i])
                self._coefficients[i] = wanted[i]
        return [
            (part * scale).astype(panel.dtype)
            for part, panel in zip(self._sum, self.panels, strict=True)
        ]

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

    def _add(self, i: int, coefficient: float) -> None:
        if not coefficient:
            return

        def visit(span: tuple[int, int, int]) -> None:
            k, a, b = span
            row = self.panels[k].rows[i][a:b]
            self._sum[k][a:b] += np.multiply(row, coefficient, dtype=np.float64)

        parallel.run(visit, self._spans(2**14))


def _common_scale(new: Float64, old: Float64) -> float:
    """Factor between two sets of coefficients, as most of them have it."""
    both = (new != 0) & (old != 0)
    ratio: Any = np.median(new[both] / old[both]) if both.any() else 1.0
    return float(ratio)
