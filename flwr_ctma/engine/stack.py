"""Where n rows of numbers are, and the few passes over them that rules need.

A `Stack` holds the rows in memory, on a GPU or on other machines; `Updates` does the
algebra on top. Distances come from inner products, which `Moments` keeps about a pivot
among the rows, so that rows that differ by little keep the digits of their distances.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.errors import parameter_error

__all__ = [
    "Columns",
    "Float64",
    "Kernel",
    "Moments",
    "Stack",
    "Vector",
    "pivot_of",
    "squared_distances",
]

Float64 = NDArray[np.float64]
Vector = list[Any]
"""One 1-D array for each panel, which is to say each tensor of the model."""

# Float32 products give squared distances to about 1e-7 of the squared norms they are
# differences of; beyond this ratio of the two, a pivot among the rows is taken.
_LOST_DIGITS = 64.0
# The square of a larger number, summed over a model, could overflow even float64.
_LARGEST = 1e140


class Kernel(Protocol):
    """A rule for one coordinate, written for a block of many."""

    def value(self, block: Any) -> Any:
        """Map an (n, width) block to values, NaN for a column that is not finite."""

    def weights(self, block: Any) -> Float64:
        """Give the (n, width) weights with which the rows enter the values."""


class Columns(NamedTuple):
    """What a visit to all coordinates gives."""

    vector: Vector
    squared_distances: Float64
    """Of each row to the vector, over the measured coordinates."""


@dataclass(frozen=True)
class Moments:
    """Inner products of n rows about zero, or about a pivot among them.

    About a pivot p the rows are x_i − p, and p itself is appended as one row more.
    """

    products: Float64
    pivot: int | None = None

    def inner(self, coefficients: Float64 | None = None) -> Float64:
        """Inner products about zero of `coefficients @ rows`; of the rows if None."""
        if self.pivot is None:
            return _sandwich(coefficients, self.products)
        n = len(self.products) - 1
        c = np.eye(n) if coefficients is None else coefficients
        lifted = np.hstack([c, c.sum(axis=1, keepdims=True)])
        return _sandwich(lifted, self.products)

    def about_pivot(self, coefficients: Float64 | None = None) -> Float64:
        """Inner products about some common point: differences of rows are the same.

        The pivot drops out only where all coefficients sum to the same, as those of
        averages do.
        """
        if self.pivot is None:
            return self.inner(coefficients)
        n = len(self.products) - 1
        if coefficients is not None:
            sums = coefficients.sum(axis=1)
            if not np.allclose(sums, sums[:1], rtol=1e-12, atol=0):
                return self.inner(coefficients)
        return _sandwich(coefficients, self.products[:n, :n])


class Stack(ABC):
    """n rows of numbers: what every place that can hold them must be able to do."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of rows."""

    @abstractmethod
    def products(self, pivot: int | None, scale: Float64 | None) -> Float64:
        """Inner products as `Moments` holds them, of rows multiplied by a scale.

        Summed in float64 over measured coordinates; not finite where a block of
        float32 squares overflows.
        """

    @abstractmethod
    def largest(self) -> Float64:
        """The largest absolute value of each row, NaN for a row that has one."""

    @abstractmethod
    def combine(self, coefficients: Float64) -> Vector:
        """The vector `coefficients @ rows`."""

    @abstractmethod
    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel to all columns of the rows, or of `mixing @ rows`."""

    @abstractmethod
    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Do as `values` does, and measure in the same visit."""

    @abstractmethod
    def deviations(self, vector: Vector, mixing: Float64 | None) -> Float64:
        """Squared distance of each (mixed) row to a vector."""

    @abstractmethod
    def shares(self, kernel: Kernel, mixing: Float64 | None) -> Float64:
        """Mean over coordinates of the weight that a kernel gives to each row."""

    @abstractmethod
    def take(self, rows: "NDArray[np.intp]") -> "Stack":
        """Some of the rows, where they are."""

    @abstractmethod
    def from_vectors(self, vectors: Sequence[Vector]) -> "Stack":
        """Vectors that were computed from these rows, as rows of their own."""

    @property
    def has_moments(self) -> bool:
        """Whether inner products are at hand, so that they cost no pass."""
        return "moments" in vars(self)

    def check_finite(self) -> None:
        """Raise a ValueError that names the rows which hold NaN or absurd numbers."""
        largest = self.largest()
        bad = np.flatnonzero(~(largest < _LARGEST))
        if bad.size:
            raise parameter_error(
                "updates",
                f"finite, and smaller than {_LARGEST:g}",
                {int(row): float(largest[row]) for row in bad},
                "Leave these rows out: they are named with their largest number.",
            )

    @cached_property
    def moments(self) -> Moments:
        """Inner products of the rows, about a pivot where that saves digits."""
        pivot, products = None, self._finite_products(None)
        better = pivot_of(products)
        if better is not None:
            pivot, products = better, self._finite_products(better)
        return Moments(products, pivot)

    def _finite_products(self, pivot: int | None) -> Float64:
        products = self.products(pivot, None)
        if np.isfinite(products).all():
            return products
        self.check_finite()
        size = self.largest()
        if pivot is not None:
            size = np.append(np.maximum(size, size[pivot]), size[pivot])
        # Powers of two: scaling back is exact.
        scale = np.exp2(-np.ceil(np.log2(np.maximum(size, 1.0))))
        scaled: Float64 = self.products(pivot, scale) / np.outer(scale, scale)
        return scaled


def squared_distances(products: Float64) -> Float64:
    """‖x_i − x_j‖² of all pairs from inner products about any common point."""
    norms = np.diag(products)
    # Rounding may tell the products of i and j from those of j and i.
    squared: Float64 = norms[:, None] + norms[None, :] - (products + products.T)
    np.fill_diagonal(squared, 0.0)
    np.maximum(squared, 0.0, out=squared)
    return squared


def pivot_of(products: Float64) -> int | None:
    """Row to centre on, where norms are so large that distances lose their digits.

    Medians over rows: no minority of rows, however large, can spoil the choice.
    """
    typical = np.median(squared_distances(products), axis=1)
    centre = int(np.argmin(typical))
    if np.median(np.diag(products)) <= _LOST_DIGITS * typical[centre]:
        return None
    return centre


def _sandwich(coefficients: Float64 | None, products: Float64) -> Float64:
    if coefficients is None:
        return products
    sandwich: Float64 = coefficients @ products @ coefficients.T
    return sandwich
