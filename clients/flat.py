"""A network whose parameters are views of one vector."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn

from clients.stacked import (
    GradientRequest,
    architecture_of,
    gradients,
    parameter_views,
)
from clients.task import Examples
from flwr_ctma.compat import make_record
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import numbers, to_array
from flwr_ctma.simulation.batched import run_batched

__all__ = ["FlatNetwork"]


class FlatNetwork:
    """A network that loads models; all clients of a process can use the same one.

    Its parameters are views of one vector, so an optimizer updates and keeps one tensor
    in place of dozens.

    Parameters
    ----------
    model : nn.Module

    Attributes
    ----------
    weights : nn.Parameter of shape (d,)
        All parameters of the model.
    buffers : tuple[Tensor, ...]
        Buffers of the model.
    architecture : str | None
        Description of the architecture if clients of it can be computed in groups.
    """

    def __init__(self, model: nn.Module) -> None:
        # On a CPU, pooling takes a third of the time so, convolutions two thirds.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        parameters = tuple(model.parameters())
        like = parameters[0]
        self.weights = nn.Parameter(like.new_empty(sum(x.numel() for x in parameters)))
        views = parameter_views(self.weights.data, parameters)
        for view, parameter in zip(views, parameters, strict=True):
            parameter.data = view.copy_(parameter.data)
        self.buffers = tuple(model.buffers())
        self.architecture = architecture_of(model)
        self._state = model.state_dict()  # the tensors themselves, by name
        named = dict(model.named_parameters())
        self._parameters = {name: named[name] for name in self._state if name in named}
        self._buffers = {k: v for k, v in self._state.items() if k not in named}

    def load(self, record: ArrayRecord) -> None:
        """Load a model from a record.

        Raises
        ------
        ValueError
            If the record is of another network.
        """
        if record.keys() != self._state.keys():
            raise parameter_error(
                "arrays", f"those of {list(self._state)}", list(record)
            )
        arrays = tuple(_fields(record[name]) for name in self._parameters)
        layout = tuple((x.shape, x.stride()) for x in self._parameters.values())
        self.weights.data.copy_(_read_vector(arrays, layout))
        for name, tensor in self._buffers.items():
            sent = torch.from_numpy(numbers(record[name]).copy())
            tensor.copy_(sent.view(tensor.shape))

    def record(self) -> ArrayRecord:
        """Return the model as a record."""
        return make_record(
            {name: to_array(x.cpu().numpy()) for name, x in self._state.items()}
        )

    def evaluate(self, batches: Sequence[Examples], clip_norm: float) -> float:
        """Return the mean loss of batches, and set `weights.grad` to its gradient.

        The gradient is clipped to `clip_norm` if that is not 0. In a `BatchedGrid` it
        is computed together with the gradients of other clients.
        """
        losses, found = zip(*map(self._gradient, batches), strict=True)
        gradient: Tensor = found[0]
        if len(found) > 1:
            gradient = sum(found[1:], start=gradient) / len(found)
        if clip_norm > 0:
            norm = torch.linalg.vector_norm(gradient)
            gradient *= (clip_norm / (norm + 1e-6)).clamp(max=1)
        self.weights.grad = gradient
        return float(sum(losses) / len(losses))

    def _gradient(self, batch: Examples) -> tuple[float, Tensor]:
        """Return the loss of a batch and its gradient, of shape (d,)."""
        request = GradientRequest(self.model, self.weights, self.architecture, batch)
        if self.architecture is None:
            return gradients([request])[0]
        return run_batched(gradients, request)


_Fields = tuple[str, tuple[int, ...], str, bytes]


def _fields(array: Array) -> _Fields:
    return array.dtype, tuple(array.shape), array.stype, array.data


# All clients of a round receive the same bytes.
@lru_cache(maxsize=1)
def _read_vector(
    arrays: tuple[_Fields, ...],
    layout: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
) -> Tensor:
    """Write arrays into one vector, each as the parameter lies in memory."""
    parts = []
    for fields, (shape, stride) in zip(arrays, layout, strict=True):
        sent = torch.from_numpy(numbers(Array(*fields)).copy()).view(shape)
        part = sent.new_empty(sent.numel())
        part.as_strided(shape, stride).copy_(sent)
        parts.append(part)
    return torch.cat(parts)
