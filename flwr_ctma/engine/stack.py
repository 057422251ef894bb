"""A stack of n rows of numbers, and the passes over them that rules need.

A `Stack` holds the rows in memory, on a GPU or on other machines; `Updates` does the
algebra on top. Distances come from inner products. `Moments` keeps these about a pivot
among the rows, so that distances between nearly equal rows keep their digits.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.engine.buffers import Array, Float64
from flwr_ctma.engine.kernels.protocol import Primitives
from flwr_ctma.errors import parameter_error

__all__ = [
    "Array",
    "Columns",
    "Float64",
    "Kernel",
    "Moments",
    "Stack",
    "Vector",
    "as_vector",
    "pivot_of",
    "squared_distances",
]

Vector = list[Any]
"""One 1-D array for each layer of the stack."""

# A squared distance is a difference of squared norms, and float32 products give it to
# about 1e-7 of these norms. Above this ratio of the two, a row is chosen as pivot.
_LOST_DIGITS = 64.0
# The square of a larger number, summed over a model, could overflow even float64.
_LARGEST = 1e140


class Kernel(Protocol):
    """A rule for one coordinate, written for a block of many."""

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Map an (n, width) block to values, NaN for a column that is not finite.

        Parameters
        ----------
        block : array of the stack's library
        primitives : Primitives
            The inner loops for this library.
        squares : float64 array of shape (n,), optional
            The squared distance of each row to the values is added to it.
        """

    def weights(self, block: Array) -> Float64:
        """Return the (n, width) weights with which the rows enter the values."""


class Columns(NamedTuple):
    """The result of one visit to all coordinates."""

    vector: Vector
    squared_distances: Float64
    """Squared distance of each row to the vector, over the measured coordinates."""


@dataclass(frozen=True)
class Moments:
    """Inner products of n rows about zero, or about a pivot among them.

    About a pivot p the rows are x_i − p, and p itself is appended as one row more.
    """

    products: Float64
    pivot: int | None = None

    def inner(self, coefficients: Float64 | None = None) -> Float64:
        """Return inner products about zero of `coefficients @ rows`, or of the rows."""
        if self.pivot is None:
            return _sandwich(coefficients, self.products)
        n = len(self.products) - 1
        c = np.eye(n) if coefficients is None else coefficients
        lifted = np.hstack([c, c.sum(axis=1, keepdims=True)])
        return _sandwich(lifted, self.products)

    def about_pivot(self, coefficients: Float64 | None = None) -> Float64:
        """Return inner products about a common point: differences stay the same.

        The pivot cancels only where all rows of coefficients have the same sum, as
        those of averages do.
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
    """n rows of numbers, wherever they are."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of rows."""

    @abstractmethod
    def products(self, pivot: int | None, scale: Float64 | None) -> Float64:
        """Return inner products as `Moments` holds them, of rows times a scale.

        They are summed in float64 over measured coordinates, and not finite where a
        block of float32 squares overflows.
        """

    @abstractmethod
    def largest(self) -> Float64:
        """Return the largest absolute value of each row, NaN for a row with a NaN."""

    @abstractmethod
    def combine(self, coefficients: Float64) -> Vector:
        """Return the vector `coefficients @ rows`."""

    @abstractmethod
    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel to all columns of the rows, or of `mixing @ rows`."""

    @abstractmethod
    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Apply a kernel as `values` does, and measure in the same visit."""

    @abstractmethod
    def deviations(self, vector: Vector, mixing: Float64 | None) -> Float64:
        """Return the squared distance of each (mixed) row to a vector."""

    @abstractmethod
    def shares(self, kernel: Kernel, mixing: Float64 | None) -> Float64:
        """Return the mean over coordinates of each row's weight in a kernel."""

    @abstractmethod
    def take(self, rows: "NDArray[np.intp]") -> "Stack":
        """Return a stack of some of the rows, without moving them elsewhere."""

    @abstractmethod
    def split(self) -> "Sequence[Stack]":
        """Return a stack for each layer, which counts in its own distances."""

    @abstractmethod
    def from_vectors(self, vectors: Sequence[Vector]) -> "Stack":
        """Return a stack of vectors that were computed from these rows."""

    @abstractmethod
    def append(self, vector: Sequence[Any]) -> "Stack":
        """Return a stack with one more row, given by layer as results are."""

    @property
    def has_moments(self) -> bool:
        """Whether inner products are known, so that they cost no pass."""
        return "moments" in vars(self)

    def check_finite(self) -> None:
        """Raise a ValueError that names the rows with NaN or too large numbers."""
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
        return self._moments_from(self._finite(self.products(None, None)))

    def use_products(self, products: Float64) -> None:
        """Take inner products about zero that were computed before, bit by bit."""
        vars(self)["moments"] = self._moments_from(self._finite(products))

    def _moments_from(self, products: Float64) -> Moments:
        pivot = pivot_of(products)
        if pivot is None:
            return Moments(products)
        return Moments(self._finite(self.products(pivot, None), pivot), pivot)

    def _finite(self, products: Float64, pivot: int | None = None) -> Float64:
        """Return products, or if they overflow, those of scaled rows, scaled back."""
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


def as_vector(vector: Any, width: int) -> Array:
    """Return a reference as an array, or raise if it is not finite and that wide."""
    if hasattr(vector, "detach"):  # a torch tensor, of any dtype on any device
        vector = vector.detach().double().cpu()
    try:
        row = np.asarray(vector)
    except (TypeError, ValueError) as error:
        raise parameter_error("reference", "a vector of floats", vector) from error
    if row.dtype.kind not in "fiu" or row.shape != (width,):
        raise parameter_error(
            "reference", f"{width} real numbers", f"{row.dtype}{row.shape}"
        )
    if not np.isfinite(row).all():
        raise parameter_error(
            "reference", "finite", row.tolist(), "Check the server's own data."
        )
    return row


def squared_distances(products: Float64) -> Float64:
    """Return ‖x_i − x_j‖² of all pairs from inner products about a common point."""
    norms = np.diag(products)
    # Rounding may make the product of i and j differ from that of j and i.
    squared: Float64 = norms[:, None] + norms[None, :] - (products + products.T)
    np.fill_diagonal(squared, 0.0)
    np.maximum(squared, 0.0, out=squared)
    return squared


def pivot_of(products: Float64) -> int | None:
    """Return the row to centre on, or None if norms are small enough without.

    The choice rests on medians over rows: no minority of rows can spoil it.
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
