"""The inner loops that NumPy, Numba and torch each implement."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from flwr_ctma.engine.buffers import Array, Float64

__all__ = ["Combine", "CpuPrimitives", "Primitives", "Read", "Strip"]

Read = Callable[[int, int, Array | None, Array], None]
"""Copy columns a to b of some rows, less an origin if there is one, into a block."""

Combine = Callable[[int, int, Array | None, Float64, Array], None]
"""Write `coefficients @ rows` for columns a to b of some rows, less an origin."""


class Strip(NamedTuple):
    """Columns a to b of some rows, less an origin if there is one."""

    rows: Sequence[Array] | Array
    a: int
    b: int
    dtype: Any
    origin: Array | None = None

    @classmethod
    def of(cls, block: Array) -> "Strip":
        """Return all columns of a block."""
        return cls(block, 0, block.shape[1], block.dtype)


class Primitives(Protocol):
    """Functions of a block, which is n rows of the same columns.

    A module implements this protocol with functions of these names. Functions that
    return one value per column return NaN for a column that is not finite. With
    `squares`, they also add the squared distance of each row to the values they return.
    """

    def squares_apart(self, block: Any, middle: Any) -> Any:
        """Return the squared distance of each row to a vector, in float64."""

    def weighted_sum(
        self, block: Any, coefficients: Float64, squares: Any = None
    ) -> Any:
        """Return `coefficients @ block`."""

    def ranked_mean(
        self, block: Any, coefficients: Sequence[float], squares: Any = None
    ) -> Any:
        """Return Σ_r c_r x_(r) / Σ_r c_r of every column, x_(0) ≤ … ≤ x_(n-1)."""

    def nearest_mean(self, block: Any, k: int, squares: Any = None) -> Any:
        """Return the mean of the k values nearest to the median of every column."""

    def weighted_median(
        self, block: Any, weights: Float64, guess: Any = None, squares: Any = None
    ) -> Any:
        """Return the weighted median of every column; a near guess may save time."""

    def weighted_ranks(
        self,
        block: Any,
        weights: Float64,
        chosen: Callable[[Float64], Float64],
        squares: Any = None,
    ) -> Any:
        """Return the mean of every column, weighted by `chosen(sorted weights)`."""


class CpuPrimitives(Primitives, Protocol):
    """Functions for rows in the memory of this process."""

    independent_products: bool
    """Whether the bits of an inner product depend on its two rows only."""

    def reader(self, rows: Sequence[Array] | Array, dtype: Any) -> Read:
        """Return a function that reads columns of the rows into a block."""

    def combiner(self, rows: Sequence[Array] | Array, dtype: Any) -> Combine:
        """Return a function that sums columns of the rows, times coefficients."""

    def products(
        self, strips: Iterable[Strip], n: int, rows: Sequence[int] | None = None
    ) -> Float64:
        """Return inner products of some of n rows with all, summed over the strips.

        Of all rows with all, if `rows` is None.
        """
