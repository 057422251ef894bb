"""The app's SGD equals torch's, and its state survives a round."""

import pytest
import torch

from clients.vector_sgd import VectorSGD
from flwr_ctma.optim.state import load_state_record, state_record


@pytest.mark.parametrize("beta", [0.0, 0.8])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_those_of_torch(beta, weight_decay):
    mine, its = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    settings = {"momentum": beta, "dampening": beta, "weight_decay": weight_decay}
    torch_sgd = torch.optim.SGD([its], lr=0.3, **settings)
    state = None
    for step in range(5):
        optimizer = VectorSGD(mine, 0.3, beta, weight_decay)  # anew in every round
        assert load_state_record(optimizer, state) == (state is not None)
        gradient = torch.linspace(-1, step, 4)

        def closure(gradient=gradient, step=step):
            mine.grad = gradient.clone()
            return step

        assert optimizer.step(closure) == step
        its.grad = gradient.clone()
        torch_sgd.step()
        state = state_record(optimizer)
        torch.testing.assert_close(mine, its)
    assert list(state) == (["VectorSGD.0.momentum"] if beta else [])
