"""The stack of client updates, and the four things one can do with it.

n clients send d numbers each. Nearly every rule is a weighting of clients that follows
from their (n, n) Gram matrix, and the rest work coordinate by coordinate:

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

from flwr_ctma.engine.cpu import CpuStack
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
        Where the numbers are.
    mixing : ndarray of shape (n, stack.n), optional
        Row i is `mixing[i] @ stack`; the rows of the stack themselves if None.
    reference : int, optional
        Row of the stack that no client sent: the server's own update, or a start.

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
        """Wrap an (n, d) array or tensor, or panels, without a copy of the rows.

        Parameters
        ----------
        data : ndarray, torch.Tensor or sequence of Panel
            Real floating-point rows.
        reference : vector of shape (d,), or one for each panel, optional
            See `Updates`.
        """
        if _is_layers(data):
            layers = _checked_layers(data)
        elif isinstance(data, np.ndarray):
            layers = [Layer(_checked(data))]
        elif _is_tensor(data):
            from flwr_ctma.engine.torch import tensor_updates

            return tensor_updates(data, reference)
        else:
            raise parameter_error(
                "updates",
                "an (n, d) NumPy array or torch tensor",
                type(data).__name__,
                "Stack the rows: `np.stack(rows)`.",
            )
        if reference is None:
            return Updates(CpuStack(layers))
        parts = [reference] if isinstance(data, np.ndarray) else list(reference)
        if len(parts) != len(layers):
            raise parameter_error(
                "reference", f"one vector for each of {len(layers)} panels", parts
            )
        n = len(layers[0].rows)
        return Updates(CpuStack(_append(layers, parts)), np.eye(n, n + 1), n)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.stack.n if self.mixing is None else len(self.mixing)

    def gram(self) -> Float64:
        """Inner products of all pairs of rows, (n, n)."""
        return self.stack.moments.inner(self.mixing)

    def centred_gram(self) -> Float64:
        """Inner products about a point near the rows, (n, n).

        For whatever depends on differences of rows alone: it keeps their digits.
        """
        return self.stack.moments.about_pivot(self.mixing)

    def squared_distances(self) -> Float64:
        """‖x_i − x_j‖² of all pairs of rows, (n, n)."""
        return squared_distances(self.centred_gram())

    def mix(self, matrix: Float64) -> "Updates":
        """Rows become `matrix @ rows`; nothing is computed yet."""
        return Updates(self.stack, self.to_stack_coefficients(matrix), self.reference)

    def take(self, rows: "Index") -> tuple["Updates", "Index"]:
        """Some of the rows, and which rows of the stack are kept for them."""
        if self.mixing is None:
            return Updates(self.stack.take(rows)), rows
        mixing = self.mixing[rows]
        kept = np.flatnonzero(mixing.any(axis=0))
        if self.reference is not None:
            kept = np.union1d(kept, [self.reference])
        elif not kept.size:  # what is taken is zero, but a stack needs a row
            kept = np.array([0])
        if len(kept) == self.stack.n:
            return Updates(self.stack, mixing, self.reference), kept
        place = None
        if self.reference is not None:
            place = int(np.searchsorted(kept, self.reference))
        return Updates(self.stack.take(kept), mixing[:, kept], place), kept

    def from_vectors(self, vectors: Sequence[Vector]) -> "Updates":
        """Vectors that were computed from these rows, beside the same reference."""
        if self.reference is None:
            return Updates(self.stack.from_vectors(vectors))
        n = len(vectors)
        start = self.stack.take(np.array([self.reference])).combine(np.ones(1))
        return Updates(self.stack.from_vectors([*vectors, start]), np.eye(n, n + 1), n)

    def to_stack_coefficients(self, coefficients: Float64) -> Float64:
        """Coefficients of these rows as coefficients of the rows of the stack."""
        return coefficients if self.mixing is None else coefficients @ self.mixing

    def combine(self, coefficients: Float64) -> Vector:
        """The vector `coefficients @ rows`, one array for each panel."""
        return self.stack.combine(self.to_stack_coefficients(coefficients))

    def columns(self, kernel: Kernel) -> Columns:
        """Apply a rule to each coordinate and measure every row's distance to it."""
        return self.stack.columns(kernel, self.mixing)


def _is_layers(data: Any) -> bool:
    return (
        isinstance(data, Sequence)
        and bool(data)
        and all(isinstance(layer, Layer) for layer in data)
    )


def _is_tensor(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "torch"


def _checked(data: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if data.ndim != 2 or 0 in data.shape:
        raise parameter_error(
            "updates",
            "of shape (n, d), one row for each client",
            data.shape,
            "Flatten each client's arrays into one row.",
        )
    if data.dtype not in (np.float16, np.float32, np.float64):
        raise parameter_error(
            "updates",
            "of dtype float16, float32 or float64",
            str(data.dtype),
            "Convert it: `updates.astype(np.float32)`.",
        )
    return data


def _checked_layers(data: Sequence[Layer]) -> list[Layer]:
    for layer in data:
        shapes = {row.shape for row in layer.rows}
        if layer.origin is not None:
            shapes.add(layer.origin.shape)
        if len(layer.rows) != len(data[0].rows) or len(shapes) != 1:
            raise parameter_error(
                "updates",
                f"panels of {len(data[0].rows)} rows as long as their origin",
                f"{len(layer.rows)} rows of shapes {sorted(shapes)}",
                "Leave out the clients whose tensors differ from the model's.",
            )
    return list(data)


def as_vector(vector: Any, width: int) -> "np.ndarray[Any, Any]":
    """Check a reference: a finite real vector as long as the rows."""
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


def _append(layers: list[Layer], vector: Sequence[Any]) -> list[Layer]:
    appended = []
    for layer, part in zip(layers, vector, strict=True):
        row = as_vector(part, layer.width)
        if layer.origin is not None:
            row = row + layer.origin
        appended.append(Layer([*layer.rows, row], layer.origin, layer.measured))
    return appended
