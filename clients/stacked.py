"""Gradients of many networks at once: side by side, as groups of channels of one."""

from collections import defaultdict
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.task import Examples

if TYPE_CHECKING:
    from clients.flat import FlatNetwork

__all__ = ["Asked", "gradients", "kind_of"]

# Images are computed together as long as what the layers make of them is in the cache.
_PIXELS = 32_768


class Asked(NamedTuple):
    """A network and a batch."""

    network: "FlatNetwork"
    batch: Examples

    @property
    def alike(self) -> tuple[object, ...]:
        """What those that are computed together have in common."""
        images = self.batch.images
        return self.network.kind, images.shape, images.device


def kind_of(model: nn.Module) -> str | None:
    """Describe a network that can stand beside others such as itself.

    Such may have convolutions, batch normalisation, pooling, and linear layers at the
    end; nothing random, such as dropout, which would fall on other examples.
    """
    return repr(model) if all(map(_stacks, _layers(model))) else None


def gradients(asked: Sequence[Asked]) -> list[tuple[float, Tensor]]:
    """Find for each the loss of its batch and the gradient, of shape (d,)."""
    torch.set_num_threads(1)  # in whatever thread this is
    by_kind = defaultdict(list)
    for place, one in enumerate(asked):
        by_kind[one.alike].append(place)
    found: dict[int, tuple[float, Tensor]] = {}
    for places in by_kind.values():
        for some in _split(places, asked[places[0]].batch.images):
            answers = _side_by_side([asked[place] for place in some])
            found |= zip(some, answers, strict=True)
    return [found[place] for place in range(len(asked))]


def _split(places: list[int], images: Tensor) -> list[list[int]]:
    """Split clients with batches like this into parts of equal size."""
    pixels = images.numel() // images.shape[1]
    most = len(places) if images.is_cuda else max(_PIXELS // pixels, 1)
    parts = ceil(len(places) / most)
    return [places[part::parts] for part in range(parts)]


def _side_by_side(asked: Sequence[Asked]) -> list[tuple[float, Tensor]]:
    if len(asked) == 1:
        return [asked[0].network.gradient(asked[0].batch)]
    n, models = len(asked), [_layers(one.network.model) for one in asked]
    matrix = torch.stack([one.network.weights.detach() for one in asked])
    matrix.requires_grad_()
    sizes = [parameter.numel() for parameter in asked[0].network.model.parameters()]
    parts = iter(torch.split(matrix, sizes, dim=1))
    # Of shape (batch, n × channels, height, width), and (n, batch, features) at the end
    x = torch.cat([one.batch.images for one in asked], dim=1)
    x = x.contiguous(memory_format=torch.channels_last)
    for index, layer in enumerate(models[0]):
        if isinstance(layer, nn.Conv2d):
            out, inside, height, width = layer.weight.shape
            # In memory, as in the vector, channels are last.
            kernel = next(parts).reshape(n * out, height, width, inside)
            x = functional.conv2d(
                x,
                kernel.permute(0, 3, 1, 2),
                next(parts).reshape(-1),
                layer.stride,
                layer.padding,
                layer.dilation,
                groups=n,
            )
        elif isinstance(layer, nn.BatchNorm2d):
            norms = [cast(nn.BatchNorm2d, model[index]) for model in models]
            x = _normalised(x, norms, next(parts).reshape(-1), next(parts).reshape(-1))
        elif isinstance(layer, nn.Flatten):
            x = x.reshape(len(x), n, -1).transpose(0, 1)
        elif isinstance(layer, nn.Linear):
            weight = next(parts).view(n, *layer.weight.shape)
            x = torch.baddbmm(next(parts).unsqueeze(1), x, weight.mT)
        else:
            x = layer(x)
    labels = torch.stack([one.batch.labels for one in asked])
    losses = functional.cross_entropy(x.mT, labels, reduction="none").mean(dim=1)
    (found,) = torch.autograd.grad(losses.sum(), matrix)
    return list(zip(losses.tolist(), found, strict=True))


def _normalised(
    x: Tensor, norms: Sequence[nn.BatchNorm2d], weight: Tensor, bias: Tensor
) -> Tensor:
    """Normalise each network's channels, and average what its own have seen."""
    first = norms[0]
    kept = [tuple(norm.buffers()) for norm in norms]  # mean, variance, batches
    means, variances = (torch.cat([one[i] for one in kept]) for i in (0, 1))
    x = functional.batch_norm(
        x, means, variances, weight, bias, True, first.momentum or 0.0, first.eps
    )
    moved = zip(means.chunk(len(norms)), variances.chunk(len(norms)), strict=True)
    for (mean, variance, batches), (new_mean, new_variance) in zip(
        kept, moved, strict=True
    ):
        mean.copy_(new_mean)
        variance.copy_(new_variance)
        batches.add_(1)
    return x


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(model) if type(model) is nn.Sequential else [model]


def _stacks(layer: nn.Module) -> bool:
    if type(layer) is nn.BatchNorm2d:
        return layer.affine and layer.track_running_stats and layer.momentum is not None
    if type(layer) is nn.Conv2d:
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and layer.bias is not None
    if type(layer) is nn.Linear:
        return layer.bias is not None
    return type(layer) in (nn.ReLU, nn.MaxPool2d, nn.Flatten)
