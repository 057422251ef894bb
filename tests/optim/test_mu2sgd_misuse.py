"""Misuse of Mu2SGD that would train nothing, or otherwise than asked, is refused."""

import pytest

torch = pytest.importorskip("torch")

from flwr_ctma.optim import Mu2SGD  # noqa: E402


@pytest.fixture
def x():
    return torch.nn.Parameter(torch.ones(1))


def test_first_closure_without_backward_is_refused(x):
    with pytest.raises(ValueError, match="backward"):
        Mu2SGD([x], 0.1).step(lambda: (x**2).sum())


def test_loss_of_other_parameters_moves_nothing(x):
    other = torch.nn.Parameter(torch.ones(1))

    def closure():
        loss = (other**2).sum()
        loss.backward()
        return loss

    Mu2SGD([x], 0.1).step(closure)
    assert x.item() == 1


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_number_of_a_group_out_of_range_is_refused(x, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        Mu2SGD([{"params": [x], name: value}], 0.1)


@pytest.mark.parametrize(
    "name",
    [
        *("clip", "schedule", "radius", "buffers"),
        *("maximize", "momentum", "dampening", "nesterov", "betas"),
    ],
)
def test_setting_that_no_group_has_is_refused(x, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        Mu2SGD([{"params": [x], name: True}], 0.1)


def test_state_of_another_optimizer_is_refused_and_changes_nothing(x):
    optimizer = Mu2SGD([x], 0.1)
    with pytest.raises(ValueError, match="state_dict"):
        optimizer.load_state_dict(torch.optim.Adam([x], 0.5).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.1
