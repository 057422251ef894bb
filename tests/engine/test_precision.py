"""Half precision and parts of models, from the clients to the next model."""

import io

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy

N = 9


def run(answer, initial, rule="ctma(gm)", malicious=2):
    """A round in which client i answers what `answer` makes of the arrays it got."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = answer(message.content["arrays"], context.node_config["partition-id"])
        content = {"arrays": arrays, "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=N, min_available_nodes=N)
    strategy = RobustStrategy(inner, rule, num_malicious_nodes=malicious)
    result = strategy.start(InProcessGrid(app, N), initial, num_rounds=1)
    return result.arrays, result.train_metrics_clientapp[1]


@pytest.mark.parametrize("rule", ["mean", "ctma(gm)", "cwtm", "nnm(ctma(cwmed))"])
def test_float16_models_are_summed_in_float32(rule):
    """Sums of nine would overflow at 65 504, and squares of any of them."""
    start = np.full(2000, 20_000.0, np.float16)
    steps = np.random.default_rng(0).normal(9000, 500, (N, 2000)).astype(np.float16)

    def answer(arrays, i):
        return ArrayRecord({"w": Array(arrays["w"].numpy() + steps[i])})

    found, _ = run(answer, ArrayRecord({"w": Array(start)}), rule)
    exact, _ = run(
        lambda arrays, i: ArrayRecord(
            {"w": Array((start + steps[i]).astype(np.float64))}
        ),
        ArrayRecord({"w": Array(start.astype(np.float64))}),
        rule,
    )
    assert found["w"].numpy().dtype == np.float16
    np.testing.assert_allclose(
        found["w"].numpy(), exact["w"].numpy(), rtol=2**-11, atol=0
    )


def test_mean_of_float16_steps_below_one_ulp_is_kept():
    """Two thirds of the clients take a step: the mean is between two float16."""
    start = np.ones(50, np.float16)
    step = np.float16(2**-9)  # 2 units in the last place

    def answer(arrays, i):
        return ArrayRecord({"w": Array(start + (step if i % 3 else np.float16(0)))})

    found, _ = run(answer, ArrayRecord({"w": Array(start)}), "mean", malicious=0)
    expected = (1 + 2 / 3 * 2**-9 * np.ones(50)).astype(np.float16)
    np.testing.assert_array_equal(found["w"].numpy(), expected)


def test_bfloat16_model_is_sent_as_float32():
    """Flower has no such dtype; nothing is lost on the way there and back."""
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 4).bfloat16()
    with pytest.raises(TypeError):
        ArrayRecord(model.state_dict())

    def record(state):
        return ArrayRecord({key: value.float() for key, value in state.items()})

    def answer(arrays, i):
        local = torch.nn.Linear(30, 4).bfloat16()
        local.load_state_dict(arrays.to_torch_state_dict())
        for key, value in local.state_dict().items():
            assert torch.equal(value, model.state_dict()[key])
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for value in local.parameters():
                value += torch.randn(value.shape, generator=generator)
        sent.append(local.state_dict())
        return record(sent[-1])

    sent = []
    found, _ = run(answer, record(model.state_dict()), "mean", malicious=0)
    for key, array in found.items():
        mean = torch.stack([state[key].double() for state in sent]).mean(dim=0)
        np.testing.assert_allclose(array.numpy(), mean.numpy(), rtol=1e-6, atol=1e-6)


def test_bfloat16_bytes_are_rejected_with_a_reason():
    """As `numpy.save` writes dtypes that NumPy does not know: without a meaning."""
    file = io.BytesIO()
    np.save(file, np.zeros(5, np.dtype("V2")))

    def answer(arrays, i):
        array = arrays["w"]
        if i == 0:
            array = Array("bfloat16", (5,), "numpy.ndarray", file.getvalue())
        return ArrayRecord({"w": array})

    _, metrics = run(answer, ArrayRecord({"w": Array(np.zeros(5, np.float32))}))
    assert metrics["replies-rejected"] == 1 and metrics["replies-accepted"] == N - 1


def test_adapters_are_aggregated_without_their_base_model():
    """Who sends the whole model, or not all adapters, is rejected; the rest count."""
    adapters = {"a.lora": np.zeros((3, 2), np.float32), "b.lora": np.zeros(4, "f2")}
    base = {"a.weight": np.ones((3, 3), np.float32)}

    def answer(arrays, i):
        assert arrays.keys() == adapters.keys()
        mine = {key: array.numpy() + 1 for key, array in arrays.items()}
        if i == 0:
            mine |= base
        elif i == 1:
            del mine["b.lora"]
        return ArrayRecord({key: Array(value) for key, value in mine.items()})

    initial = ArrayRecord({key: Array(value) for key, value in adapters.items()})
    found, metrics = run(answer, initial)
    assert found.keys() == adapters.keys()
    for key, array in found.items():
        np.testing.assert_array_equal(array.numpy(), adapters[key] + 1)
        assert array.numpy().dtype == adapters[key].dtype
    assert metrics["replies-rejected"] == 2 and len(metrics["nodes-rejected"]) == 2
