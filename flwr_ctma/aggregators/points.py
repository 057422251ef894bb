"""Points: the vectors that rules find, computed only when they are needed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flwr_ctma.engine.kernels.protocol import Primitives
from flwr_ctma.engine.stack import (
    Array,
    Columns,
    Float64,
    Kernel,
    Stack,
    Vector,
    squared_distances,
)
from flwr_ctma.engine.updates import Updates

__all__ = ["Combination", "CoordinateWise", "Point", "concatenated"]


class Point(ABC):
    """A vector that a rule found, its influence and distances, computed on demand."""

    @abstractmethod
    def vector(self, stack: Stack) -> Vector:
        """Return the vector."""

    @abstractmethod
    def squared_distances(self, rows: Updates) -> Float64:
        """Return the squared distance of each row to the vector."""

    @abstractmethod
    def influence(self, stack: Stack) -> Float64:
        """Return the weight of each row of the stack in the vector."""

    def weights(self) -> Float64 | None:
        """Return the influence if it is the same in every coordinate, else None."""
        return None


@dataclass(frozen=True, eq=False)
class _Sum:
    """A weighted sum as a kernel, so that one visit also measures distances."""

    coefficients: Float64

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the sum."""
        return primitives.weighted_sum(block, self.coefficients, squares)

    def weights(self, block: Array) -> Float64:
        """Return the coefficients, in every column."""
        return np.repeat(self.coefficients[:, None], block.shape[1], axis=1)


@dataclass(frozen=True, eq=False)
class Combination(Point):
    """The vector `coefficients @ stack`.

    A vector that was computed to measure distances is kept.
    """

    coefficients: Float64

    def vector(self, stack: Stack) -> Vector:
        """Return one weighted sum of the rows."""
        of, vector = vars(self).get("_found", (None, []))
        return vector if of is stack else stack.combine(self.coefficients)

    def squared_distances(self, rows: Updates) -> Float64:
        """Return distances from inner products if known, without the vector."""
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
        """Return the coefficients."""
        return self.coefficients

    def weights(self) -> Float64:
        """Return the coefficients."""
        return self.coefficients


@dataclass(frozen=True, eq=False)
class CoordinateWise(Point):
    """The vector that a kernel computes coordinate by coordinate.

    All coordinates are visited when the vector or a distance is needed; the visit
    measures only in the second case.
    """

    kernel: Kernel
    rows: Updates

    @cached_property
    def _found(self) -> Columns:
        return self.rows.columns(self.kernel)

    def vector(self, stack: Stack) -> Vector:
        """Return the kernel's values."""
        if "_found" in vars(self):
            return self._found.vector
        return stack.values(self.kernel, self.rows.mixing)

    def squared_distances(self, rows: Updates) -> Float64:
        """Return the distances that the visit measured; visit again for other rows."""
        if rows is self.rows:
            return self._found.squared_distances
        return rows.stack.deviations(self._found.vector, rows.mixing)

    def influence(self, stack: Stack) -> Float64:
        """Visit all coordinates to find the rows that the values came from."""
        return self.rows.to_stack_coefficients(
            stack.shares(self.kernel, self.rows.mixing)
        )


@dataclass(frozen=True, eq=False)
class _Concatenation(Point):
    """A vector that was found layer by layer."""

    parts: Sequence[Updates]
    points: Sequence[Point]

    @cached_property
    def _vector(self) -> Vector:
        found = zip(self.parts, self.points, strict=True)
        return [layer for part, point in found for layer in point.vector(part.stack)]

    def vector(self, stack: Stack) -> Vector:
        """Return the vectors of all layers."""
        return self._vector

    def squared_distances(self, rows: Updates) -> Float64:
        """Measure the distances in one more visit."""
        return rows.stack.deviations(self._vector, rows.mixing)

    def influence(self, stack: Stack) -> Float64:
        """Return the mean of the influence in the layers, weighted by their widths."""
        total, width = np.zeros(stack.n), 0
        for part, point, layer in zip(
            self.parts, self.points, self._vector, strict=True
        ):
            if len(layer):
                total += len(layer) * point.influence(part.stack)
                width += len(layer)
        return total / width


def concatenated(parts: Sequence[Updates], points: Sequence[Point]) -> Point:
    """Return the point that is `points[k]` in layer k of rows that were split."""
    return points[0] if len(points) == 1 else _Concatenation(parts, points)
