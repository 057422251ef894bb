"""Compiled blocks give the numbers of torch, and networks they cannot compute stay."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from clients import blocks
from clients.flat import FlatNetwork

pytest.importorskip("numba")
pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed, channels, kernels, size, classes=4):
    torch.manual_seed(seed)
    layers = []
    for kernel, outside in kernels:
        layers += [nn.Conv2d(channels, outside, kernel, padding=kernel // 2)]
        layers += [nn.MaxPool2d(2), nn.ReLU()]
        channels, size = outside, [x // 2 for x in size]
    linear = nn.Linear(channels * size[0] * size[1], classes)
    return nn.Sequential(*layers, nn.Flatten(), linear)


SHAPES = {  # channels, (kernel, channels outside) of each block, height and width
    "one block": (1, [(3, 16)], (6, 6)),
    "rows that no window holds": (3, [(5, 16), (3, 32)], (11, 9)),
    "three blocks": (2, [(1, 32), (3, 48), (5, 16)], (8, 12)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_different_networks_are_those_of_autograd(shape):
    channels, kernels, size = SHAPES[shape]
    models = [network(i, channels, kernels, size) for i in range(3)]
    for model in models:  # equal numbers in a window: the first is the largest
        model[0].weight.data[3] = 0
        model[0].bias.data[3] = 0.5
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(3, 5, channels, *size, generator=rng)
    labels = torch.randint(0, 4, (3, 5), generator=rng)
    expected = []
    for model, x, y in zip(models, images, labels, strict=True):
        loss = functional.cross_entropy(model(x), y)
        expected.append((loss, torch.autograd.grad(loss, [*model.parameters()])))
    flat = [FlatNetwork(model) for model in models]
    assert blocks.are_blocks(models[0], images.device)
    weights = torch.stack([one.weights.detach() for one in flat])
    losses, found = blocks.gradients(models[0], weights, images, labels)
    for loss, vector, (true_loss, parts) in zip(losses, found, expected, strict=True):
        torch.testing.assert_close(loss, true_loss)
        channels_last = [g.permute(0, 2, 3, 1) if g.dim() == 4 else g for g in parts]
        true = torch.cat([g.flatten() for g in channels_last])
        torch.testing.assert_close(vector, true, rtol=1e-4, atol=1e-6)


def test_outputs_are_those_of_torch():
    model, x = network(0, *SHAPES["three blocks"]), torch.randn(7, 2, 8, 12)
    torch.testing.assert_close(blocks.outputs(model, x), model(x))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_numbers_that_may_overflow_are_torchs(number):
    model, x = network(0, *SHAPES["one block"]), torch.ones(1, 1, 6, 6)
    assert blocks.are_moderate(x)
    with torch.no_grad():
        model[0].weight[3, 0, 1, 1] = number
    assert not blocks.are_moderate(model[0].weight)
    found, expected = blocks.outputs(model, x), model(x)
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        (0, nn.Conv2d(1, 8, 3, padding=1)),
        (0, nn.Conv2d(1, 16, 3, padding=0)),
        (0, nn.Conv2d(1, 16, 4, padding=2)),
        (0, nn.Conv2d(1, 16, 3, padding=1, bias=False)),
        (0, nn.Conv2d(1, 16, 3, padding=1, stride=2)),
        (0, nn.Conv2d(1, 16, 5, padding=2, dilation=2)),
        (0, nn.Conv2d(1, 16, 3, padding=1, padding_mode="reflect")),
        (1, nn.MaxPool2d(3)),
        (1, nn.MaxPool2d(2, ceil_mode=True)),
        (1, nn.MaxPool2d(2, padding=1)),
        (1, nn.AvgPool2d(2)),
        (2, nn.Tanh()),
        (3, nn.Flatten(2)),
        (4, nn.Linear(144, 4, bias=False)),
        (4, nn.Linear(144, 4, dtype=torch.float64)),
    ],
)
def test_other_layers_are_torchs(place, layer):
    model = network(0, *SHAPES["one block"])
    assert blocks.are_blocks(model, torch.device("cpu"))
    model[place] = layer
    assert not blocks.are_blocks(model, torch.device("cpu"))
