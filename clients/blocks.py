"""Networks of convolution, 2 × 2 maximum and ReLU, then a linear layer; compiled.

Where Numba is installed, `clients.compiled` computes these blocks, for one network or
for many of different weights, several times as fast as torch.
"""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["are_blocks", "are_moderate", "gradients", "outputs"]

# Weights and pixels below it cannot make a number that is not finite, which compiled
# comparisons would lose.
_LARGEST = 1e4


def are_blocks(model: nn.Module, device: torch.device) -> bool:
    """Return whether this network is one of blocks, and can be computed here."""
    if device.type != "cpu" or _compiled() is None or type(model) is not nn.Sequential:
        return False
    if len(model) < 5 or len(model) % 3 != 2:
        return False
    *blocks, flatten, linear = model
    return (
        type(flatten) is nn.Flatten
        and (flatten.start_dim, flatten.end_dim) == (1, -1)
        and type(linear) is nn.Linear
        and linear.bias is not None
        and linear.weight.dtype == torch.float32
        and all(_is_block(*blocks[i : i + 3]) for i in range(0, len(blocks), 3))
    )


def are_moderate(*tensors: Tensor) -> bool:
    """Return whether all numbers are finite, and none is so large as to overflow."""
    return all(bool(x.abs().max() < _LARGEST) for x in tensors)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a network makes of m images: (m, classes)."""
    if are_blocks(model, images.device):
        vector = torch.cat(
            [
                (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(-1)
                for x in model.parameters()
            ]
        )
        if are_moderate(vector, images):
            return _Pass(model, vector.unsqueeze(0), images.unsqueeze(0)).logits[0]
    found: Tensor = model(images)
    return found


@torch.no_grad()
def gradients(
    model: nn.Module, weights: Tensor, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each batch, (n,), and its gradient, (n, d).

    Parameters
    ----------
    model : nn.Module
        The architecture; see `are_blocks`.
    weights : Tensor of shape (n, d)
        All parameters of each network, as `FlatNetwork` keeps them.
    images : Tensor of shape (n, m, channels, height, width)
    labels : Tensor of shape (n, m)
    """
    found = _Pass(model, weights, images)
    logs = functional.log_softmax(found.logits, dim=2)
    chosen = labels.unsqueeze(2)
    losses = -logs.gather(2, chosen).mean(dim=(1, 2))
    slopes = logs.exp_()
    slopes.scatter_add_(2, chosen, slopes.new_tensor(-1.0).expand(chosen.shape))
    return losses, found.gradient(slopes / labels.shape[1])


class _Pass:
    """The way forward through n networks, and what the way back needs of it."""

    def __init__(self, model: nn.Module, weights: Tensor, images: Tensor) -> None:
        self._parameters = [*model.parameters()]
        self._convolutions = [x for x in model.children() if isinstance(x, nn.Conv2d)]
        # Border of zeros around the input of each block, none around the last output.
        self._edges = [int(x.padding[0]) for x in self._convolutions] + [0]
        self._weights = self._split(weights)
        n, m, _, height, width = images.shape
        edge = self._edges[0]
        x = images.permute(0, 1, 3, 4, 2)
        x = functional.pad(x, (0, 0, edge, edge, edge, edge)).contiguous()
        self._inputs, self._marks = [x.numpy()], []
        for index, (layer, edge) in enumerate(
            zip(self._convolutions, self._edges[1:], strict=True)
        ):
            height, width = height // 2, width // 2
            shape = (n, m, height + 2 * edge, width + 2 * edge, layer.out_channels)
            y = torch.zeros(shape).numpy()
            marks = np.empty((n, m, height, width, layer.out_channels), np.uint8)
            _compiled().forward(
                self._inputs[-1],
                *self._weights[2 * index : 2 * index + 2],
                layer.kernel_size[0],
                y,
                edge,
                marks,
            )
            self._inputs.append(y)
            self._marks.append(marks)
        last = torch.from_numpy(self._inputs[-1])
        self._flat = last.permute(0, 1, 4, 2, 3).reshape(n, m, -1)
        weight, bias = map(torch.from_numpy, self._weights[-2:])
        self.logits = torch.baddbmm(bias.unsqueeze(1), self._flat, weight.mT)

    def gradient(self, slopes: Tensor) -> Tensor:
        """Return the gradients, (n, d), given those of the outputs."""
        n, m, _ = slopes.shape
        found = torch.empty(n, sum(x.numel() for x in self._parameters))
        parts = self._split(found)
        weight, bias = map(torch.from_numpy, parts[-2:])
        torch.bmm(slopes.mT, self._flat, out=weight)
        torch.sum(slopes, dim=1, out=bias)
        _, _, height, width, channels = self._inputs[-1].shape
        g = torch.bmm(slopes, torch.from_numpy(self._weights[-2]))
        g = g.view(n, m, channels, height, width).permute(0, 1, 3, 4, 2)
        slope = g.contiguous().numpy()
        for index in reversed(range(len(self._convolutions))):
            x = self._inputs[index]
            before = torch.zeros(x.shape if index else (0,) * x.ndim).numpy()
            _compiled().backward(
                x,
                self._weights[2 * index],
                self._marks[index],
                self._convolutions[index].kernel_size[0],
                slope,
                self._edges[index + 1],
                *parts[2 * index : 2 * index + 2],
                before,
            )
            slope = before
        return found

    def _split(self, matrix: Tensor) -> list[np.ndarray[Any, Any]]:
        """View rows as parameters, each (n, outputs, inputs) or (n, outputs).

        In memory, as in the rows, the channels of a kernel are last.
        """
        parts = torch.split(matrix, [x.numel() for x in self._parameters], dim=1)
        return [
            part.view(len(part), len(x), -1).numpy() if x.dim() > 1 else part.numpy()
            for part, x in zip(parts, self._parameters, strict=True)
        ]


def _is_block(layer: nn.Module, pool: nn.Module, relu: nn.Module) -> bool:
    """Return whether three layers are a block, with channels in groups of 16."""
    if type(layer) is not nn.Conv2d or type(pool) is not nn.MaxPool2d:
        return False
    size = layer.kernel_size[0]
    return (
        type(relu) is nn.ReLU
        and layer.kernel_size == (size, size)
        and size % 2 == 1
        and layer.padding == (size // 2, size // 2)
        and layer.padding_mode == "zeros"
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.bias is not None
        and layer.out_channels % 16 == 0
        and (pool.kernel_size, pool.stride) in ((2, 2), ((2, 2), (2, 2)))
        and (pool.padding, pool.dilation) in ((0, 1), ((0, 0), (1, 1)))
        and not (pool.ceil_mode or pool.return_indices)
    )


@cache
def _compiled() -> Any:
    """Return the compiled functions; None without Numba."""
    try:
        return import_module("clients.compiled")
    except ImportError:
        return None
