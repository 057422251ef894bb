"""Rows in a torch tensor: on a GPU, or in a dtype that NumPy lacks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from flwr_ctma.engine.buffers import Float64
from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.kernels import torch as primitives
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Columns, Kernel, Stack, Vector, as_vector
from flwr_ctma.errors import parameter_error

__all__ = ["TorchStack", "as_tensor", "stack_of"]

# Bytes of a block: enough to fill a GPU, little beside the rows.
_BLOCK_BYTES = 2**28


def stack_of(data: torch.Tensor) -> Stack:
    """Return a stack of an (n, d) tensor, viewed by NumPy if it is on the CPU."""
    if data.ndim != 2 or 0 in data.shape:
        raise parameter_error(
            "updates",
            "of shape (n, d), one row for each client",
            tuple(data.shape),
            "Flatten each client's tensors into one row.",
        )
    if not data.is_floating_point():
        raise parameter_error("updates", "of a floating-point dtype", str(data.dtype))
    rows = data.detach()
    if data.device.type == "cpu" and data.dtype != torch.bfloat16:
        return CpuStack([Layer(rows.numpy())])
    return TorchStack(rows)


def as_tensor(vector: Any, like: torch.Tensor) -> torch.Tensor:
    """Return a result as a tensor of the device and dtype of the updates."""
    return torch.as_tensor(vector).to(like)


class TorchStack(Stack):
    """n rows on a device; float64 is computed in float64, the rest in float32."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        double = rows.dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def products(self, pivot: int | None, scale: Float64 | None) -> Float64:
        """Return inner products of all rows, each block in full float32 precision."""
        size = self.n + (pivot is not None)
        total = torch.zeros(size, size, dtype=torch.float64, device=self.rows.device)
        with _full_precision():
            for a, b in self._spans():
                block = self._rows(a, b)
                if scale is not None:
                    block = block.double()
                if pivot is not None:
                    block = torch.vstack([block - block[pivot], block[pivot]])
                if scale is not None:
                    block *= torch.as_tensor(scale, device=block.device)[:, None]
                total += block @ block.T
        products: Float64 = total.cpu().numpy()
        return products

    def largest(self) -> Float64:
        """Return the largest absolute value of each row."""
        found = [self._rows(a, b).abs().amax(dim=1) for a, b in self._spans()]
        most: Float64 = torch.stack(found).amax(dim=0).double().cpu().numpy()
        return most

    def combine(self, coefficients: Float64) -> Vector:
        """Return the vector `coefficients @ rows`."""
        c = torch.as_tensor(coefficients, dtype=self.dtype, device=self.rows.device)
        vector = self._empty()
        with _full_precision():
            for a, b in self._spans():
                vector[a:b] = c @ self._rows(a, b)
        if not vector.isfinite().all():
            self.check_finite()
        return [vector]

    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel block by block."""
        vector, finite = self._empty(), True
        with _full_precision():
            for a, b in self._spans():
                block = self._mixed(a, b, mixing)
                finite &= bool(block.isfinite().all())
                vector[a:b] = kernel.value(block, primitives)
        if not finite:
            self.check_finite()
        return [vector]

    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Apply a kernel block by block, then measure."""
        vector = self.values(kernel, mixing)
        return Columns(vector, self.deviations(vector, mixing))

    def deviations(self, vector: Vector, mixing: Float64 | None) -> Float64:
        """Return the squared distance of each row to the vector."""
        size = self.n if mixing is None else len(mixing)
        total = torch.zeros(size, dtype=torch.float64, device=self.rows.device)
        for a, b in self._spans():
            block = self._mixed(a, b, mixing)
            total += primitives.squares_apart(block, vector[0][a:b])
        if not total.isfinite().all():
            self.check_finite()
        squared: Float64 = total.cpu().numpy()
        return squared

    def shares(self, kernel: Kernel, mixing: Float64 | None) -> Float64:
        """Return the mean over coordinates of each row's weight in a kernel."""
        found = [
            kernel.weights(self._mixed(a, b, mixing).cpu().numpy()).sum(axis=1)
            for a, b in self._spans()
        ]
        total: Float64 = np.sum(found, axis=0) / self.rows.shape[1]
        return total

    def take(self, rows: "np.ndarray[Any, Any]") -> "TorchStack":
        """Return a copy of some of the rows."""
        return TorchStack(self.rows[torch.as_tensor(rows, device=self.rows.device)])

    def split(self) -> "list[TorchStack]":
        """Return this stack: a tensor is one layer."""
        return [self]

    def from_vectors(self, vectors: Sequence[Vector]) -> "TorchStack":
        """Return a stack of vectors."""
        return TorchStack(torch.stack([vector[0] for vector in vectors]))

    def append(self, vector: Sequence[Any]) -> "TorchStack":
        """Return a copy with one more row."""
        row = torch.as_tensor(as_vector(vector[0], self.rows.shape[1]))
        return TorchStack(torch.vstack([self.rows, row.to(self.rows)]))

    def _empty(self) -> torch.Tensor:
        return torch.empty(
            self.rows.shape[1], dtype=self.dtype, device=self.rows.device
        )

    def _spans(self) -> list[tuple[int, int]]:
        d = self.rows.shape[1]
        width = max(1, _BLOCK_BYTES // (self.n * self.rows.element_size()))
        return [(a, min(a + width, d)) for a in range(0, d, width)]

    def _rows(self, a: int, b: int) -> torch.Tensor:
        return self.rows[:, a:b].to(self.dtype)

    def _mixed(self, a: int, b: int, mixing: Float64 | None) -> torch.Tensor:
        block = self._rows(a, b)
        if mixing is None:
            return block
        with _full_precision():
            return torch.as_tensor(mixing, dtype=block.dtype).to(block.device) @ block


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute matrix products without TF32, whose 10 bits lose the distances."""
    setting: Any = torch.backends.cuda.matmul
    name: str
    full: Any
    try:
        name, full, before = "allow_tf32", False, setting.allow_tf32
    except RuntimeError:  # set by its newer name: torch forbids mixing the two
        name, full, before = "fp32_precision", "ieee", setting.fp32_precision
    setattr(setting, name, full)
    try:
        yield
    finally:
        setattr(setting, name, before)
