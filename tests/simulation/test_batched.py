"""A batched simulation gives the results of one that runs client by client."""

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file
from torch import nn
from typer.testing import CliRunner

from clients import stacked
from clients.flat import FlatNetwork
from clients.stacked import GradientRequest, gradients
from clients.task import Examples
from flwr_ctma.cli import app as command_line
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.runtimes import Batched
from flwr_ctma.simulation.batched import BatchedGrid, run_batched
from flwr_ctma.simulation.grid import InProcessGrid

APP = FlowerApp(Path(__file__).parents[2])
SMALL = {
    "num-nodes": 5,
    "num-malicious-nodes": 0,
    "attack": "none",
    "num-server-rounds": 3,
    "local-steps": 2,
    "batch-size": 8,
    "fraction-evaluate": 1.0,
}
MODES = {
    "mu2, own steps": {"optimizer": "mu2"},
    "mu2, the server's": {"optimizer": "mu2(floored)", "steps-on": "server"},
    "momentum, the server's": {"optimizer": "momentum", "steps-on": "server"},
    "clipped": {"optimizer": "sgd", "clip-norm": 0.5},
    "running statistics": {"model": "paper", "optimizer": "mu2"},
    "transformer": {"model": "transformer", "optimizer": "mu2"},
    "table": {"dataset": "breast-cancer", "model": "mlp", "optimizer": "sgd"},
    "unequal batches": {"partitioner": "dirichlet", "alpha": 0.2, "batch-size": 64},
    "attacked": {"attack": "labelflip", "num-malicious-nodes": 2},
    "colluders": {"attack": "alie", "num-malicious-nodes": 2},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def simulate(folder, kind, **overrides):
    config = APP.run_config(SMALL, overrides, {"output": str(folder)})
    APP.simulate(config["num-nodes"], config, kind)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("mode", MODES)
def test_model_is_that_of_one_by_one(tmp_path, monkeypatch, mode):
    sizes = []

    def counted(requests, compute=stacked._group_gradients):
        sizes.append(len(requests))
        return compute(requests)

    monkeypatch.setattr(stacked, "_group_gradients", counted)
    alone = simulate(tmp_path / "alone", InProcessGrid, **MODES[mode])
    assert set(sizes) == {1}
    batched = simulate(tmp_path / "batched", BatchedGrid, **MODES[mode])
    assert max(sizes) > 1
    for name, expected in alone.items():
        np.testing.assert_allclose(batched[name], expected, rtol=1e-3, atol=1e-4)


def test_same_seed_same_bits(tmp_path):
    one, other = (simulate(tmp_path / i, BatchedGrid) for i in "12")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_command_line_option_selects_the_batched_grid(tmp_path, monkeypatch):
    seen = []

    def played(self, num_nodes, run_config, kind):
        seen.append((num_nodes, run_config["seed"], kind))

    monkeypatch.setattr(FlowerApp, "simulate", played)
    words = ["simulate", str(APP.path), "--num-nodes", "3"]
    words += ["-c", "seed=7 num-malicious-nodes=1"]
    for options in ([], [*Batched.options]):
        done = CliRunner().invoke(command_line, [*words, *options])
        assert done.exit_code == 0, done.output
    assert seen == [(3, 7, InProcessGrid), (3, 7, BatchedGrid)]


def test_virtual_clock_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`arrivals` should be `real` where"):
        simulate(tmp_path, BatchedGrid, arrivals="uniform")


def network(seed=0, dropout=0.0, device="cpu"):
    torch.manual_seed(seed)
    relu = nn.ReLU()  # used twice
    layers = [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), relu]
    layers += [nn.Conv2d(3, 5, 2, dilation=2), relu, nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(20, 6), relu, nn.Linear(6, 3)]
    layers += [nn.Dropout(dropout)] if dropout else []
    return FlatNetwork(nn.Sequential(*layers).to(device))


def batch(seed, size=4, device="cpu"):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 2, 12, 12, generator=rng)
    return Examples(images, torch.arange(size) % 3, 3).to(torch.device(device))


def request(network, batch):
    return GradientRequest(network.model, network.weights, network.architecture, batch)


def requests(device="cpu"):
    sizes = [4, 4, 7, 4, 7, 2]
    return [
        request(network(i, device=device), batch(i, n, device))
        for i, n in enumerate(sizes)
    ]


@pytest.mark.parametrize("pixels", [1_000_000, 1200])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
        ),
    ],
)
def test_gradients_and_statistics_are_those_of_each(monkeypatch, device, pixels):
    monkeypatch.setattr(stacked, "_PIXELS", pixels)
    all_at_once, each = requests(device), requests(device)
    answers = gradients(all_at_once)
    for one, other, (loss, found) in zip(all_at_once, each, answers, strict=True):
        expected_loss, expected = stacked._autograd(other)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        buffers = zip(one.model.buffers(), other.model.buffers(), strict=True)
        for mine, its in buffers:
            torch.testing.assert_close(mine, its)


def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(stacked, "_PIXELS", 600)  # parts of one client
    found, seen = [], []

    def noted(requests, compute=stacked._group_gradients):
        seen.append(threading.get_ident())
        if os.environ["FLWR_CTMA_NUM_THREADS"] == "2":
            both.wait(timeout=10)
        return compute(requests)

    monkeypatch.setattr(stacked, "_group_gradients", noted)
    both = threading.Barrier(2)
    for count in ("1", "2"):
        monkeypatch.setenv("FLWR_CTMA_NUM_THREADS", count)
        seen.clear()
        found.append(gradients(requests()))
        assert len(set(seen)) == int(count) and len(seen) == 6
    for (loss, gradient), (other_loss, other) in zip(*found, strict=True):
        assert loss == other_loss and torch.equal(gradient, other)


def plain_network(seed, channels=2):
    """Every layer that clients with the same weights are computed with, some twice."""
    torch.manual_seed(seed)
    relu = nn.ReLU()
    layers = [nn.ReLU(), nn.Conv2d(channels, 3, 3, padding=1), relu]
    layers += [nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(3, 5, 2, dilation=2), relu]
    layers += [nn.MaxPool2d((1, 2), ceil_mode=True), nn.Flatten(), nn.Linear(40, 6)]
    return FlatNetwork(nn.Sequential(*layers, relu, nn.Linear(6, 3)))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("clients", [1, 5])
def test_gradients_at_the_same_weights_are_those_of_each(channels, clients):
    images = [batch(i).images[:, :channels, :, :11].clone() for i in range(clients)]
    batches = [
        Examples(x, torch.tensor([i, 0, 1, 2]) % 3, 3) for i, x in enumerate(images)
    ]
    same = [request(plain_network(0, channels), one) for one in batches]
    before = [one.clone() for one in images]
    assert stacked._has_common_weights(same)
    for one, (loss, found) in zip(same, gradients(same), strict=True):
        expected_loss, expected = stacked._autograd(one)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert found.norm() > 0.01
    assert all(map(torch.equal, images, before))


def test_networks_with_other_weights_or_running_statistics_do_not_share_a_pass():
    one, other = (request(plain_network(i), batch(0)) for i in (0, 1))
    assert not stacked._has_common_weights([one, other])
    assert not stacked._has_common_weights([request(network(0), batch(0))] * 2)


def test_nonfinite_network_leaves_the_other_gradients_finite():
    spoilt = requests()
    spoilt[0].weights.data.fill_(torch.nan)
    answers = gradients(spoilt)
    finite = [bool(found.isfinite().all()) for _, found in answers]
    assert finite == [False, True, True, True, True, True]


UNKNOWN = [
    nn.Conv2d(2, 4, 1, groups=2),
    nn.Conv2d(2, 4, 1, bias=False),
    nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
    nn.BatchNorm2d(2, track_running_stats=False),
    nn.Conv2d(2, 4, 3, padding="same"),
    nn.Flatten(2),
    nn.Tanh(),
    nn.LayerNorm(12),
]


def network_with(layer, seed):
    """A network with a layer that groups of channels do not know."""
    torch.manual_seed(seed)
    layers = [copy.deepcopy(layer), nn.Flatten(), nn.LazyLinear(3, bias=False)]
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), *layers)
    model(torch.zeros(1, 2, 12, 12))
    return FlatNetwork(model)


@pytest.mark.parametrize("layer", UNKNOWN)
def test_other_networks_are_mapped_over_their_weights(monkeypatch, layer):
    def requests_of():
        batches = [
            Examples(batch(i).images, torch.tensor([i, 0, i, 2]) % 3, 3)
            for i in range(4)
        ]
        return [request(network_with(layer, i // 2), batches[i]) for i in range(4)]

    each = [stacked._autograd(one) for one in requests_of()]
    monkeypatch.setattr(stacked, "_autograd", None)
    for (loss, found), one in zip(gradients(requests_of()), each, strict=True):
        assert loss == pytest.approx(one[0], rel=1e-5)
        torch.testing.assert_close(found, one[1], rtol=1e-4, atol=1e-6)
    spoilt = requests_of()
    spoilt[1].weights.data.fill_(torch.nan)
    finite = [bool(found.isfinite().all()) for _, found in gradients(spoilt)]
    assert finite == [True, False, True, True]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.Sequential(nn.Tanh(), nn.Dropout2d(0.1)),
        nn.BatchNorm2d(4, momentum=None),
        nn.Sequential(nn.BatchNorm2d(4)),
    ],
)
def test_random_layer_or_running_statistic_is_computed_client_by_client(layer):
    assert stacked.architecture_of(nn.Sequential(nn.ReLU(), layer)) is None
    assert network(dropout=0.5).architecture is None
    assert network().architecture == network(1).architecture is not None


def gather(requests):
    """Answer each request with the list of all requests."""
    if "spoilt" in requests:
        raise ValueError("no number")
    return [list(requests)] * len(requests)


def grid_of(answer, num_nodes=5):
    app = ClientApp()
    app.query()(answer)
    return BatchedGrid(app, num_nodes)


def ask(grid, nodes=None):
    nodes = nodes or grid.get_node_ids()
    messages = [Message(RecordDict(), node, "query") for node in nodes]
    return grid.send_and_receive(messages)


def said(reply):
    return dict(reply.content["said"])


def answer_of(message, **metrics):
    return Message(RecordDict({"said": MetricRecord(metrics)}), reply_to=message)


def test_client_that_ends_raises_or_calls_less_often_delays_no_other():
    def answer(message: Message, context: Context) -> Message | None:
        me = int(context.node_config["partition-id"])
        if me == 4:
            return None
        seen = []
        for _ in range(me):
            seen += run_batched(gather, me)
            if me == 2:
                raise SystemExit("out of memory")
        return answer_of(message, seen=seen)

    grid = grid_of(answer)
    first, second, failed, last = ask(grid)
    assert said(first) == {"seen": []}
    assert said(second) == {"seen": [1, 2, 3]}
    assert failed.has_error() and "out of memory" in failed.error.reason
    assert said(last) == {"seen": [1, 2, 3, 3, 3]}


def test_request_that_cannot_be_computed_is_an_error_of_its_client():
    def answer(message: Message, context: Context) -> Message:
        me = context.node_config["partition-id"]
        return answer_of(
            message, n=len(run_batched(gather, "spoilt" if me == 1 else me))
        )

    replies = ask(grid_of(answer))
    assert [reply.has_error() for reply in replies] == [False, True] + [False] * 3
    assert "no number" in replies[1].error.reason
    assert {said(reply)["n"] for reply in replies if reply.has_content()} == {1}


def test_clients_run_in_turns_and_messages_to_one_node_in_sequence():
    running, before = [], {*threading.enumerate()}

    def answer(message: Message, context: Context) -> Message:
        for _ in range(3):
            running.append(context.node_id)
            assert len(running) == 1
            assert running.pop() == context.node_id
            run_batched(gather, 0)
        kept = context.state.setdefault("kept", MetricRecord({"messages": 0}))
        kept["messages"] += 1
        return answer_of(message, **kept)

    grid = grid_of(answer, num_nodes=100)  # more than run at a time
    nodes = grid.get_node_ids()
    replies = ask(grid, [*nodes, nodes[0], nodes[0]])
    assert [said(reply)["messages"] for reply in replies] == [1] * 100 + [2, 3]
    assert {*threading.enumerate()} == before


def test_clients_do_not_share_the_mode_of_gradients():
    modes = []

    def answer(message: Message, context: Context) -> Message:
        alone = context.node_config["partition-id"] == 1
        with torch.set_grad_enabled(not alone):
            n = len(run_batched(watched, 0))
            modes.append(torch.is_grad_enabled())
        return answer_of(message, n=n)

    def watched(requests):
        modes.append(torch.is_grad_enabled())
        return [requests] * len(requests)

    assert {said(reply)["n"] for reply in ask(grid_of(answer, num_nodes=3))} == {3}
    assert modes == [True, True, False, True]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "context", [lambda: torch.autocast("cpu"), torch.inference_mode]
)
def test_context_that_all_clients_would_be_in_is_refused(context):
    entered = []

    def answer(message: Message, _: Context) -> Message:
        entered.append(torch.is_autocast_enabled("cpu"))
        entered.append(torch.is_inference_mode_enabled())
        with context():
            return answer_of(message, n=len(run_batched(gather, 0)))

    for reply in ask(grid_of(answer)):
        assert "called outside of torch." in reply.error.reason
    assert not any(entered)


def test_client_that_imports_torch_within_its_turn_keeps_its_gradients_apart():
    lines = """
import sys
from flwr_ctma.simulation.batched import _run_in_turns, run_batched

def task(i):
    import torch
    began = torch.is_grad_enabled()
    with torch.no_grad():
        run_batched(list, i)
    return began

assert "torch" not in sys.modules
print(_run_in_turns([lambda i=i: task(i) for i in range(3)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[True, True, True]\n"


class Unhashable(list):
    def __call__(self, requests):
        return requests


def exits(requests):
    raise SystemExit("no memory")


@pytest.mark.parametrize("compute", [Unhashable(), exits])
def test_function_that_cannot_be_batched_is_an_error_of_its_client(compute):
    def answer(message: Message, context: Context) -> Message:
        wrong = context.node_config["partition-id"] == 1
        return answer_of(message, n=len(run_batched(compute if wrong else gather, 0)))

    replies = ask(grid_of(answer))
    assert [reply.has_error() for reply in replies] == [False, True] + [False] * 3


def test_interrupt_ends_the_round_and_its_clients():
    def interrupt(requests):
        raise KeyboardInterrupt

    ended = []

    def answer(message: Message, context: Context) -> Message:
        try:
            return answer_of(message, n=run_batched(interrupt, 0))
        finally:
            ended.append(context.node_id)

    grid = grid_of(answer)
    with pytest.raises(KeyboardInterrupt):
        ask(grid)
    assert sorted(ended) == grid.get_node_ids()
