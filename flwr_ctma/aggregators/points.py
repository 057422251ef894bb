"""Vectors that rules find, and what is known of them without computing them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma.engine.stack import (
    Columns,
    Float64,
    Kernel,
    Stack,
    Vector,
    squared_distances,
)
from flwr_ctma.engine.updates import Updates

__all__ = ["Combination", "CoordinateWise", "Point"]


class Point(ABC):
    """A vector that a rule found, and what is known of it without computing it."""

    @abstractmethod
    def vector(self, stack: Stack) -> Vector:
        """The vector itself."""

    @abstractmethod
    def squared_distances(self, rows: Updates) -> Float64:
        """Squared distance of each row to the vector."""

    @abstractmethod
    def influence(self, stack: Stack) -> Float64:
        """How much each row of the stack counts in the vector."""

    def weights(self) -> Float64 | None:
        """The influence, if it is the same in every coordinate."""
        return None


@dataclass(frozen=True, eq=False)
class _Sum:
    """A weighted sum as a kernel: measured in the same visit."""

    coefficients: Float64

    def value(self, block: Any) -> Any:
        """The sum."""
        if isinstance(block, np.ndarray):
            return self.coefficients.astype(block.dtype) @ block
        return block.new_tensor(self.coefficients) @ block

    def weights(self, block: Any) -> Float64:
        """The coefficients, in every column."""
        return np.repeat(self.coefficients[:, None], block.shape[1], axis=1)


@dataclass(frozen=True, eq=False)
class Combination(Point):
    """The vector `coefficients @ stack`.

    Where it is computed for the distances to it, it is kept.
    """

    coefficients: Float64

    def vector(self, stack: Stack) -> Vector:
        """One weighted sum of the rows."""
        of, vector = vars(self).get("_found", (None, []))
        return vector if of is stack else stack.combine(self.coefficients)

    def squared_distances(self, rows: Updates) -> Float64:
        """From inner products, if they are at hand: the vector is not computed."""
        if not rows.stack.has_moments:
            found = self._measure(rows)
            if np.isfinite(found.squared_distances).all():
                vars(self)["_found"] = rows.stack, found.vector
                return found.squared_distances
        c = self.coefficients
        moments = rows.stack.moments
        if rows.mixing is None and np.isclose(c.sum(), 1.0, rtol=1e-12):
            g = moments.about_pivot()
            return np.maximum(np.diag(g) - 2 * (g @ c) + c @ g @ c, 0.0)
        matrix = np.eye(rows.stack.n) if rows.mixing is None else rows.mixing
        return squared_distances(moments.about_pivot(np.vstack([matrix, c])))[-1, :-1]

    def _measure(self, rows: Updates) -> Columns:
        if rows.mixing is None:
            return rows.columns(_Sum(self.coefficients))
        vector = self.vector(rows.stack)
        return Columns(vector, rows.stack.deviations(vector, rows.mixing))

    def influence(self, stack: Stack) -> Float64:
        """The coefficients."""
        return self.coefficients

    def weights(self) -> Float64:
        """The coefficients."""
        return self.coefficients


@dataclass(frozen=True, eq=False)
class CoordinateWise(Point):
    """The vector that a kernel gives coordinate by coordinate.

    A visit to all coordinates is made when the vector or a distance is asked for, and
    measures only in the second case.
    """

    kernel: Kernel
    rows: Updates

    @cached_property
    def _found(self) -> Columns:
        return self.rows.columns(self.kernel)

    def vector(self, stack: Stack) -> Vector:
        """What the kernel gives."""
        if "_found" in vars(self):
            return self._found.vector
        return stack.values(self.kernel, self.rows.mixing)

    def squared_distances(self, rows: Updates) -> Float64:
        """What the visit measured; another visit only for other rows."""
        if rows is self.rows:
            return self._found.squared_distances
        return rows.stack.deviations(self._found.vector, rows.mixing)

    def influence(self, stack: Stack) -> Float64:
        """Another visit, to see which row every value came from."""
        return self.rows.to_stack_coefficients(
            stack.shares(self.kernel, self.rows.mixing)
        )
