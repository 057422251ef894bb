"""A network whose weights are one vector, as optimizers and messages take them."""

from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn
from torch.nn import functional

from clients.stacked import Asked, gradients, kind_of
from clients.task import Examples
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import numbers, to_array
from flwr_ctma.simulation.batched import run_batched

__all__ = ["FlatNetwork"]


class FlatNetwork:
    """A network to load models into: one will do for all clients of a process.

    Its parameters are views of one vector, so that an optimizer has one tensor to step
    along and to keep, where it would have dozens.

    Parameters
    ----------
    model : nn.Module

    Attributes
    ----------
    weights : nn.Parameter of shape (d,)
        All parameters of the model.
    kind : str | None
        What networks that can be computed together have in common.
    """

    def __init__(self, model: nn.Module) -> None:
        # On a CPU, pooling takes a third of the time so, and convolutions two thirds.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self._parameters = tuple(model.parameters())
        like = self._parameters[0]
        self.weights = nn.Parameter(
            like.new_empty(sum(map(torch.numel, model.parameters())))
        )
        for view, parameter in zip(
            self._views(self.weights.data), self._parameters, strict=True
        ):
            parameter.data = view.copy_(parameter.data)
        self.buffers = tuple(model.buffers())
        self.kind = kind_of(model)
        self._state = model.state_dict()  # the very tensors, by name

    def load(self, record: ArrayRecord) -> None:
        """Take over a model as it was sent.

        Raises
        ------
        ValueError
            If it is one of another network.
        """
        if record.keys() != self._state.keys():
            raise parameter_error(
                "arrays", f"those of {list(self._state)}", list(record)
            )
        for name, tensor in self._state.items():
            sent = torch.from_numpy(numbers(record[name]).copy())
            tensor.copy_(sent.view(tensor.shape))

    def record(self) -> ArrayRecord:
        """Give the model as it is sent."""
        record = ArrayRecord()
        for name, tensor in self._state.items():
            record[name] = to_array(tensor.cpu().numpy())
        return record

    def evaluate(self, batches: Sequence[Examples], clip_norm: float) -> float:
        """Find the mean loss of some batches; its gradient is put into the weights.

        The gradient is clipped to a norm, if that is not 0. In a `BatchedGrid` it is
        computed along with those of other clients.
        """
        total, gradient = 0.0, torch.zeros_like(self.weights, requires_grad=False)
        for batch in batches:
            loss, found = (
                run_batched(gradients, Asked(self, batch))
                if self.kind
                else self.gradient(batch)
            )
            gradient.add_(found, alpha=1 / len(batches))
            total += loss / len(batches)
        if clip_norm > 0:
            norm = torch.linalg.vector_norm(gradient)
            gradient *= (clip_norm / (norm + 1e-6)).clamp(max=1)
        self.weights.grad = gradient
        return total

    def gradient(self, batch: Examples) -> tuple[float, Tensor]:
        """Find the loss of a batch and the gradient, of shape (d,)."""
        loss = functional.cross_entropy(self.model(batch.images), batch.labels)
        found = torch.autograd.grad(loss, self._parameters)
        gradient = torch.empty_like(self.weights, requires_grad=False)
        for view, part in zip(self._views(gradient), found, strict=True):
            view.copy_(part)
        return loss.item(), gradient

    def _views(self, vector: Tensor) -> list[Tensor]:
        """View a vector as the parameters, each as it lies in memory."""
        parts = torch.split(vector, [x.numel() for x in self._parameters])
        return [
            part.as_strided(x.shape, x.stride())
            for part, x in zip(parts, self._parameters, strict=True)
        ]
