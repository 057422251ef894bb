"""Gradients of many networks of one architecture in few calls of torch.

Clients that received the same model share the forward pass and the gradients of the
activations: their batches form one large batch. Networks with different weights become
groups of channels of one network. Networks of compiled blocks need neither. Networks of
other layers, such as a transformer, are mapped over their weights.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from clients import blocks
from clients.task import Examples
from flwr_ctma.engine import threads

__all__ = ["GradientRequest", "architecture_of", "gradients", "parameter_views"]

# Pixels of the images of one call: the activations of blocks and of groups stay in the
# cache, and those of common weights in little memory.
_BLOCK_PIXELS = 65_536
_PIXELS = 32_768
_COMMON_PIXELS = 524_288
# Numbers below a kernel, up to which a product is faster than a convolution.
_FEW_INPUTS = 32

_Dropout = nn.modules.dropout._DropoutNd
_aten = torch.ops.aten


class GradientRequest(NamedTuple):
    """A network and a batch.

    Attributes
    ----------
    model : nn.Module
        The network; its parameters are views of `weights`.
    weights : Tensor of shape (d,)
        All parameters.
    architecture : str | None
        Description that equal architectures share; None for an unsupported one.
    batch : Examples
        Images and labels.
    """

    model: nn.Module
    weights: Tensor
    architecture: str | None
    batch: Examples


def architecture_of(model: nn.Module) -> str | None:
    """Describe an architecture that `gradients` can compute in groups, or return None.

    Supported are convolutions, batch normalisation, pooling, and linear layers at the
    end; and all networks without buffers. Random layers such as dropout are not: they
    would draw other numbers.
    """
    has_buffers = any(True for _ in model.buffers())
    is_random = any(isinstance(m, _Dropout) and m.p > 0 for m in model.modules())
    mapped = not has_buffers and not is_random
    return repr(model) if mapped or _are_layers_supported(model) else None


def parameter_views(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """View a vector as parameters, each with the strides of that parameter."""
    parts = torch.split(vector, [x.numel() for x in parameters])
    return [
        part.as_strided(x.shape, x.stride())
        for part, x in zip(parts, parameters, strict=True)
    ]


def gradients(requests: Sequence[GradientRequest]) -> list[tuple[float, Tensor]]:
    """Return for each request the mean loss of the batch and its gradient, (d,)."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        images = request.batch.images
        alone = i if request.architecture is None else None
        key = (request.architecture, images.shape, images.device, alone)
        groups[key].append(i)
    parts = [
        part
        for members in groups.values()
        for part in _split(
            members,
            requests[members[0]].batch.images,
            _most_pixels([requests[i] for i in members]),
        )
    ]

    def compute(part: list[int]) -> list[tuple[float, Tensor]]:
        return _group_gradients([requests[i] for i in part])

    # Parts do not depend on the cores, and so neither do bits. `_mapped` sets a switch
    # of torch that all threads share.
    alike = all(_are_layers_supported(request.model) for request in requests)
    answers = threads.run(compute, parts) if alike else map(compute, parts)
    found: dict[int, tuple[float, Tensor]] = {}
    for part, some in zip(parts, answers, strict=True):
        found |= zip(part, some, strict=True)
    return [found[i] for i in range(len(requests))]


def _most_pixels(requests: Sequence[GradientRequest]) -> int:
    """Return the pixels of one call."""
    if _are_blocks(requests[0]):
        return _BLOCK_PIXELS
    return _COMMON_PIXELS if _has_common_weights(requests) else _PIXELS


def _are_blocks(request: GradientRequest) -> bool:
    return blocks.are_blocks(request.model, request.weights.device)


def _split(members: list[int], images: Tensor, most_pixels: int) -> list[list[int]]:
    """Split clients with batches of this shape into parts of equal size."""
    pixels = images.numel() // images.shape[1]
    most = len(members) if images.is_cuda else max(most_pixels // pixels, 1)
    parts = ceil(len(members) / most)
    return [members[part::parts] for part in range(parts)]


def _group_gradients(
    requests: Sequence[GradientRequest],
) -> list[tuple[float, Tensor]]:
    torch.set_num_threads(1)  # of the thread that calls this
    first = requests[0]
    if _are_blocks(first):
        weights = torch.stack([request.weights.detach() for request in requests])
        images = torch.stack([request.batch.images for request in requests])
        if blocks.are_moderate(weights, images):
            labels = torch.stack([request.batch.labels for request in requests])
            losses, found = blocks.gradients(first.model, weights, images, labels)
            return list(zip(losses.tolist(), found, strict=True))
    supported = _are_layers_supported(first.model)
    if supported and _has_common_weights(requests):
        return _common_weights(requests)
    if len(requests) == 1:
        return [_autograd(first)]
    return _grouped_channels(requests) if supported else _mapped(requests)


def _has_common_weights(requests: Sequence[GradientRequest]) -> bool:
    """Return whether all weights are equal, in networks without running statistics."""
    first = requests[0]
    if first.architecture is None or any(True for _ in first.model.buffers()):
        return False
    return all(torch.equal(first.weights, r.weights) for r in requests[1:])


def _autograd(request: GradientRequest) -> tuple[float, Tensor]:
    """Compute one gradient with autograd: works for every network."""
    model, batch = request.model, request.batch
    parameters = tuple(model.parameters())
    loss = functional.cross_entropy(model(batch.images), batch.labels)
    found = torch.autograd.grad(loss, parameters)
    gradient = torch.empty_like(request.weights, requires_grad=False)
    for view, part in zip(parameter_views(gradient, parameters), found, strict=True):
        view.copy_(part)
    return loss.item(), gradient


@torch.no_grad()
def _common_weights(
    requests: Sequence[GradientRequest],
) -> list[tuple[float, Tensor]]:
    """Backpropagate by hand: all but the gradients of weights is one large batch."""
    n, model = len(requests), requests[0].model
    x = torch.cat([request.batch.images for request in requests])
    labels = torch.cat([request.batch.labels for request in requests])
    # Strides tell torch the layout also where there is one channel.
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    x = x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)
    tape: list[tuple[nn.Module, Tensor, Any]] = []
    for layer in _layers(model):
        out, kept = _forward(layer, x)
        tape.append((layer, x, kept))
        x = out
    logs = functional.log_softmax(x, dim=1)
    losses = functional.nll_loss(logs, labels, reduction="none").view(n, -1).mean(dim=1)
    g = logs.exp_()
    g[torch.arange(len(g), device=g.device), labels] -= 1
    g /= len(g) // n
    d = requests[0].weights.numel()
    matrix = torch.empty(n, d, dtype=x.dtype, device=x.device)
    parameters = tuple(model.parameters())
    views = _stacked_views(matrix, parameters)
    index = len(parameters)
    for place in reversed(range(len(tape))):
        layer, x, kept = tape[place]
        if isinstance(layer, nn.Conv2d | nn.Linear):
            index -= 2
            _weight_gradients(layer, x, g, *views[index : index + 2])
        if place:
            g = _backward(layer, x, kept, g)
    return list(zip(losses.tolist(), matrix, strict=True))


def _stacked_views(matrix: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """View the rows of a matrix as parameters: (n, *shape) for each parameter."""
    parts = torch.split(matrix, [x.numel() for x in parameters], dim=1)
    return [
        part.as_strided((len(part), *x.shape), (part.stride(0), *x.stride()))
        for part, x in zip(parts, parameters, strict=True)
    ]


def _forward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """Apply a layer; return what its backward pass needs as well."""
    if isinstance(layer, nn.MaxPool2d):
        out, indices = _aten.max_pool2d_with_indices(x, *_pooling(layer))
        return out, indices
    out = layer(x)
    return out, out if isinstance(layer, nn.ReLU) else None


def _backward(layer: nn.Module, x: Tensor, kept: Any, g: Tensor) -> Tensor:
    """Return the gradient of the input of a layer, given that of its output."""
    if isinstance(layer, nn.Conv2d):
        return _convolution_backward(layer, x, g, [True, False, False])[0]
    if isinstance(layer, nn.Linear):
        return g @ layer.weight
    if isinstance(layer, nn.ReLU):
        return cast(Tensor, _aten.threshold_backward(g, kept, 0))
    if isinstance(layer, nn.MaxPool2d):
        g = g.contiguous(memory_format=torch.channels_last)
        found = _aten.max_pool2d_with_indices_backward(g, x, *_pooling(layer), kept)
        return cast(Tensor, found)
    return g.view(x.shape)  # nn.Flatten


def _weight_gradients(
    layer: nn.Conv2d | nn.Linear, x: Tensor, g: Tensor, weight: Tensor, bias: Tensor
) -> None:
    """Write the gradients of weight and bias for n clients, whose batches are in x."""
    n = len(weight)
    if isinstance(layer, nn.Linear):
        own_x, own_g = (t.view(n, len(t) // n, -1) for t in (x, g))
        torch.bmm(own_g.mT, own_x, out=weight)
        torch.sum(own_g, dim=1, out=bias)
        return
    # A view: channels are last.
    flat = g.permute(0, 2, 3, 1).reshape(n, -1, layer.out_channels)
    torch.sum(flat, dim=1, out=bias)
    inputs = weight[0, 0].numel()
    if inputs <= _FEW_INPUTS:
        found = torch.bmm(
            _patches(layer, x, g).view(inputs, n, -1).transpose(0, 1), flat
        )
        weight.copy_(found.mT.view(weight.shape))
    else:
        for own, own_x, own_g in zip(weight, x.chunk(n), g.chunk(n), strict=True):
            mask = [False, True, False]
            own.copy_(_convolution_backward(layer, own_x, own_g, mask)[1])


def _patches(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Return what each weight of a kernel is multiplied by: (inputs, places of g)."""
    rows, columns = map(int, layer.padding)  # a text is unsupported
    x = functional.pad(x, [columns, columns, rows, rows])
    n, channel, row, column = x.stride()
    (down, right), (step_y, step_x) = layer.stride, layer.dilation
    height, width = layer.kernel_size
    shape = (x.shape[1], height, width, len(x), *g.shape[2:])
    strides = (channel, step_y * row, step_x * column, n, down * row, right * column)
    return x.as_strided(shape, strides).reshape(-1, len(x) * g[0, 0].numel())


def _convolution_backward(
    layer: nn.Conv2d, x: Tensor, g: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    found = _aten.convolution_backward(
        g,
        x,
        layer.weight,
        [layer.out_channels],
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        [0, 0],
        1,
        mask,
    )
    return cast(tuple[Tensor, Tensor, Tensor], found)


def _pooling(layer: nn.MaxPool2d) -> tuple[Any, ...]:
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    pairs = [[size] * 2 if isinstance(size, int) else list(size) for size in sizes]
    return (*pairs, layer.ceil_mode)


def _grouped_channels(
    requests: Sequence[GradientRequest],
) -> list[tuple[float, Tensor]]:
    """Compute networks with different weights as groups of channels."""
    n, models = len(requests), [_layers(request.model) for request in requests]
    matrix = torch.stack([request.weights.detach() for request in requests])
    matrix.requires_grad_()
    sizes = [parameter.numel() for parameter in requests[0].model.parameters()]
    parts = iter(torch.split(matrix, sizes, dim=1))
    # Shape (batch, n × channels, height, width); (n, batch, features) at the end.
    x = torch.cat([request.batch.images for request in requests], dim=1)
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
            x = _normalize(x, norms, next(parts).reshape(-1), next(parts).reshape(-1))
        elif isinstance(layer, nn.Flatten):
            x = x.reshape(len(x), n, -1).transpose(0, 1)
        elif isinstance(layer, nn.Linear):
            weight = next(parts).view(n, *layer.weight.shape)
            x = torch.baddbmm(next(parts).unsqueeze(1), x, weight.mT)
        else:
            x = layer(x)
    labels = torch.stack([request.batch.labels for request in requests])
    losses = functional.cross_entropy(x.mT, labels, reduction="none").mean(dim=1)
    (found,) = torch.autograd.grad(losses.sum(), matrix)
    return list(zip(losses.tolist(), found, strict=True))


def _mapped(requests: Sequence[GradientRequest]) -> list[tuple[float, Tensor]]:
    """Compute networks without buffers, each with its own weights, by `vmap`."""
    model = requests[0].model
    matrix = torch.stack([request.weights.detach() for request in requests])
    matrix.requires_grad_()
    names, parameters = zip(*model.named_parameters(), strict=True)
    weights = dict(zip(names, _stacked_views(matrix, parameters), strict=True))
    images = torch.stack([request.batch.images for request in requests])
    labels = torch.stack([request.batch.labels for request in requests])

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, own, (x,)), y)

    with sdpa_kernel(SDPBackend.MATH):  # the others know no batches of networks
        losses = vmap(loss)(weights, images, labels)
        (found,) = torch.autograd.grad(losses.sum(), matrix)
    return list(zip(losses.tolist(), found, strict=True))


def _normalize(
    x: Tensor, norms: Sequence[nn.BatchNorm2d], weight: Tensor, bias: Tensor
) -> Tensor:
    """Normalize the channels of each network and update its running statistics."""
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


def _are_layers_supported(model: nn.Module) -> bool:
    return all(map(_is_supported, _layers(model)))


def _is_supported(layer: nn.Module) -> bool:
    if type(layer) is nn.BatchNorm2d:
        return layer.affine and layer.track_running_stats and layer.momentum is not None
    if type(layer) is nn.Conv2d:
        zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return layer.groups == 1 and zeros and layer.bias is not None
    if type(layer) is nn.Linear:
        return layer.bias is not None
    if type(layer) is nn.MaxPool2d:
        return not layer.return_indices
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return type(layer) is nn.ReLU
