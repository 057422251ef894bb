"""The stack of client updates, and its four operations.

n clients send d numbers each. Nearly every rule is a weighting of clients that follows
from their (n, n) Gram matrix; the other rules work coordinate by coordinate:

    gram()           inner products of the rows: one pass over the data
    mix(M)           rows become M @ rows: no pass
    combine(c)       c @ rows: one pass
    columns(kernel)  a rule for each coordinate, and every row's distance to the result
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.engine.build import make_stack
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import (
    Columns,
    Float64,
    Kernel,
    Stack,
    Vector,
    squared_distances,
)
from flwr_ctma.errors import parameter_error

__all__ = ["Float64", "Kernel", "Layer", "Stack", "Updates", "Vector"]

Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Updates:
    """Rows of a stack, or combinations of them.

    Parameters
    ----------
    stack : Stack
        The rows of numbers.
    mixing : ndarray of shape (n, stack.n), optional
        Row i is `mixing[i] @ stack`; the rows of the stack themselves if None.
    reference : int, optional
        Row of the stack that no client sent: the server's own update, or the point
        where a rule starts.

    Examples
    --------
    >>> rows = Updates.of(np.array([[3.0, 4.0], [0.0, 2.0]]))
    >>> rows.gram()
    array([[25.,  8.],
           [ 8.,  4.]])
    >>> rows.mix(np.array([[0.5, 0.5]])).combine(np.array([1.0]))
    [array([1.5, 3. ])]
    """

    stack: Stack
    mixing: Float64 | None = None
    reference: int | None = None

    @staticmethod
    def of(data: Any, reference: Any = None) -> "Updates":
        """Wrap an (n, d) array or tensor, or layers, without a copy of the rows.

        Parameters
        ----------
        data : ndarray, torch.Tensor or sequence of Layer
            Real floating-point rows.
        reference : vector of shape (d,), or one for each layer, optional
            Appended as a row of the stack; see `Updates`.
        """
        stack = make_stack(data)
        if reference is None:
            return Updates(stack)
        by_layer = isinstance(data, Sequence)
        parts = list(reference) if by_layer else [reference]
        if by_layer and len(parts) != len(data):
            raise parameter_error(
                "reference", f"one vector for each of {len(data)} layers", parts
            )
        return Updates(stack.append(parts), np.eye(stack.n, stack.n + 1), stack.n)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.stack.n if self.mixing is None else len(self.mixing)

    def gram(self) -> Float64:
        """Return the inner products of all pairs of rows, (n, n)."""
        return self.stack.moments.inner(self.mixing)

    def centred_gram(self) -> Float64:
        """Return the inner products about a point near the rows, (n, n).

        Use them where only differences of rows matter: these keep their digits.
        """
        return self.stack.moments.about_pivot(self.mixing)

    def squared_distances(self) -> Float64:
        """Return ‖x_i − x_j‖² of all pairs of rows, (n, n)."""
        return squared_distances(self.centred_gram())

    def mix(self, matrix: Float64) -> "Updates":
        """Return the rows `matrix @ rows`; nothing is computed yet."""
        return Updates(self.stack, self.to_stack_coefficients(matrix), self.reference)

    def take(self, rows: "Index") -> tuple["Updates", "Index"]:
        """Return some of the rows, and the rows of the stack that they need."""
        if self.mixing is None:
            return Updates(self.stack.take(rows)), rows
        mixing = self.mixing[rows]
        kept = np.flatnonzero(mixing.any(axis=0))
        if self.reference is not None:
            kept = np.union1d(kept, [self.reference])
        elif not kept.size:  # the rows taken are zero, but a stack needs a row
            kept = np.array([0])
        if len(kept) == self.stack.n:
            return Updates(self.stack, mixing, self.reference), kept
        place = None
        if self.reference is not None:
            place = int(np.searchsorted(kept, self.reference))
        return Updates(self.stack.take(kept), mixing[:, kept], place), kept

    def split(self) -> list["Updates"]:
        """Return these rows in each layer, with the same mixing and reference."""
        stacks = self.stack.split()
        return [Updates(stack, self.mixing, self.reference) for stack in stacks]

    def from_vectors(self, vectors: Sequence[Vector]) -> "Updates":
        """Return vectors computed from these rows as rows, with the same reference."""
        if self.reference is None:
            return Updates(self.stack.from_vectors(vectors))
        n = len(vectors)
        start = self.stack.take(np.array([self.reference])).combine(np.ones(1))
        return Updates(self.stack.from_vectors([*vectors, start]), np.eye(n, n + 1), n)

    def to_stack_coefficients(self, coefficients: Float64) -> Float64:
        """Return coefficients of these rows as coefficients of the stack's rows."""
        return coefficients if self.mixing is None else coefficients @ self.mixing

    def combine(self, coefficients: Float64) -> Vector:
        """Return the vector `coefficients @ rows`, one array for each layer."""
        return self.stack.combine(self.to_stack_coefficients(coefficients))

    def columns(self, kernel: Kernel) -> Columns:
        """Apply a kernel to each coordinate, and measure every row's distance to it."""
        return self.stack.columns(kernel, self.mixing)
