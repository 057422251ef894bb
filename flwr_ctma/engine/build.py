"""From the caller's data to a stack, and from a result back to the caller's kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Stack, Vector
from flwr_ctma.errors import parameter_error

__all__ = ["like", "make_stack"]


def make_stack(data: Any) -> Stack:
    """Return the stack for a kind of data, without a copy of the rows.

    Parameters
    ----------
    data : ndarray or torch.Tensor of shape (n, d), or sequence of Layer
        Real floating-point rows.

    Raises
    ------
    ValueError
        For another type, shape or dtype.
    """
    if _is_layers(data):
        return CpuStack(_checked_layers(data))
    if isinstance(data, np.ndarray):
        return CpuStack([Layer(_checked(data))])
    if _is_tensor(data):
        # torch is optional: whoever has a tensor has imported it.
        from flwr_ctma.engine import torch

        return torch.stack_of(data)
    raise parameter_error(
        "updates",
        "an (n, d) NumPy array or torch tensor",
        type(data).__name__,
        "Stack the rows: `np.stack(rows)`.",
    )


def like(data: Any, vector: Vector) -> Any:
    """Return a result as the kind, dtype and device of the data it came from."""
    if isinstance(data, np.ndarray):
        return vector[0].astype(data.dtype, copy=False)
    if _is_tensor(data):
        from flwr_ctma.engine import torch

        return torch.as_tensor(vector[0], data)
    return vector


def _is_layers(data: Any) -> bool:
    return (
        isinstance(data, Sequence)
        and bool(data)
        and all(isinstance(layer, Layer) for layer in data)
    )


def _is_tensor(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "torch"


def _checked(data: Array) -> Array:
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
                f"layers of {len(data[0].rows)} rows as long as their origin",
                f"{len(layer.rows)} rows of shapes {sorted(shapes)}",
                "Leave out the clients whose tensors differ from the model's.",
            )
    return list(data)
