"""A network whose weights are one vector does what any network does."""

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn
from torch.nn.functional import cross_entropy

from clients.flat import FlatNetwork
from clients.task import Examples


def network(seed=0, outside=3):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, outside)]
    return nn.Sequential(*layers)


def batch(seed):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 1, 2, 2, generator=rng)
    return Examples(images, torch.arange(6) % 3, num_classes=3)


def test_model_travels_both_ways():
    sent, flat = network(seed=1), FlatNetwork(network(seed=2))
    flat.load(ArrayRecord(sent.state_dict()))
    assert flat.record() == ArrayRecord(sent.state_dict())
    expected = nn.utils.parameters_to_vector(sent.parameters())
    torch.testing.assert_close(flat.weights.data, expected.detach())


def test_convolutions_travel_as_they_came():
    """In memory channels are last; in messages they are where they were."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)]
    sent = nn.Sequential(*layers)
    record = ArrayRecord(sent.state_dict())
    images = torch.randn(6, 3, 2, 2)
    flat = FlatNetwork(nn.Sequential(nn.Conv2d(3, 4, 2), *layers[1:3], nn.Linear(4, 3)))
    flat.load(record)
    assert flat.record() == record
    flat.evaluate([Examples(images, torch.arange(6) % 3, 3)], clip_norm=0.0)
    flat.weights.data.sub_(flat.weights.grad)
    cross_entropy(sent(images), torch.arange(6) % 3).backward()
    for name, parameter in sent.named_parameters():
        stepped = flat.model.get_parameter(name)
        torch.testing.assert_close(stepped, parameter - parameter.grad)


def test_a_step_along_the_vector_moves_the_model():
    flat = FlatNetwork(network())
    flat.weights.data.add_(1.0)
    expected = network().state_dict()["1.bias"] + 1.0
    torch.testing.assert_close(flat.model.state_dict()["1.bias"], expected)


@pytest.mark.parametrize("clip_norm", [0.0, 0.01, 100.0])
def test_gradient_is_the_mean_of_the_batches_clipped(clip_norm):
    flat, model = FlatNetwork(network()), network()
    batches = [batch(0), batch(1)]
    loss = flat.evaluate(batches, clip_norm)
    losses = [cross_entropy(model(b.images), b.labels) for b in batches]
    (sum(losses) / 2).backward()
    if clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    gradients = [x.grad for x in model.parameters()]
    expected = nn.utils.parameters_to_vector(gradients)
    torch.testing.assert_close(flat.weights.grad, expected)
    assert loss == pytest.approx(sum(one.item() for one in losses) / 2)


def test_another_network_is_not_taken_over():
    flat = FlatNetwork(network())
    with pytest.raises(ValueError, match="arrays"):
        flat.load(ArrayRecord({"0.weight": torch.zeros(3)}))
    with pytest.raises(RuntimeError, match="shape"):
        flat.load(ArrayRecord(network(outside=4).state_dict()))
