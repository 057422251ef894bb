"""The app's ways to train, each against the same recursion written by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from clients import honest
from clients.config import RunConfig
from clients.models import build_model
from clients.task import load_held_out, load_train
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.tracking.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
APP = FlowerApp(ROOT)
SMALL = {
    "num-nodes": 3,
    "num-malicious-nodes": 0,
    "attack": "none",
    "aggregator": "mean",
    "num-server-rounds": 4,
    "steps-on": "server",
    "local-steps": 2,
    "batch-size": 8,
    "learning-rate": 0.1,
}
WEIGHTS = {  # α, β and γ of step t
    "mu2(floored)": lambda t: (1.0, 1 / t, 2 / (t + 1)),
    "mu2(paper, radius=9.0)": lambda t: (t, 1 / t, 2 / (t + 2)),
    "mu2(fixed(storm-beta=0.3, gamma=0.2))": lambda t: (1.0, 0.3, 0.2),
    "momentum(beta=0.8)": lambda t: (1.0, 0.2, 1.0),
    "sgd": lambda t: (1.0, 1.0, 1.0),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def simulate(folder, **overrides):
    config = APP.run_config(SMALL, overrides, {"output": str(folder)})
    APP.simulate(config["num-nodes"], config)
    return RunFolder(folder).rounds(), load_file(folder / "model.safetensors")


def flat(model):
    """Parameters in the order of the layers: files have them in another."""
    layers = sorted({int(name.split(".")[0]) for name in model})
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    return torch.cat([model[name].flatten() for name in names])


def gradient(model, config, partition, server_round, point):
    """Mean gradient at a point, of the batches that the app draws in a round."""
    torch.nn.utils.vector_to_parameters(point, model.parameters())
    examples = load_train(config, partition, config.num_nodes)
    rng = np.random.default_rng([config.seed, partition, server_round])
    model.train()
    model.zero_grad()
    for _ in range(config.local_steps):
        batch = examples[
            torch.from_numpy(rng.permutation(len(examples))[: config.batch_size])
        ]
        (
            cross_entropy(model(batch.images), batch.labels) / config.local_steps
        ).backward()
    g = torch.cat([x.grad.flatten() for x in model.parameters()])
    shrink = config.clip_norm / (g.norm() + 1e-6) if config.clip_norm else 1.0
    return g * min(float(shrink), 1.0)


def by_hand(overrides, asked):
    """Server and clients, as the papers write them, given who takes part."""
    config = RunConfig.of(APP.run_config(SMALL, overrides))
    model = build_model(load_held_out(config), config)
    weights = WEIGHTS[config.optimizer]
    corrected = config.optimizer.startswith("mu2")
    w = x = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    last = {}
    for t, partitions in enumerate(asked, start=1):
        sent = []
        for i in partitions:
            count, point, d = last.get(i, (0, None, None))
            beta = weights(count + 1)[1]
            g = gradient(model, config, i, t, x)
            if count and corrected:
                g = g + (1 - beta) * (d - gradient(model, config, i, t, point))
            elif count:
                g = beta * g + (1 - beta) * d
            last[i] = count + 1, x, g
            sent.append(g)
        alpha, _, gamma = weights(t)
        d = torch.stack(sent).mean(dim=0)
        w = w - config.learning_rate * alpha * (d + config.weight_decay * x)
        if "radius" in config.optimizer:
            w = w * min(1.0, 9.0 / float(w.norm()))
        x = x + gamma * (w - x)
        if not corrected:
            w = x
    return x


def assert_follows(model, overrides, asked):
    """It went where the recursion goes, up to a hundredth of the way.

    Rounding decides which of equal pixels a pooling layer takes, so bits differ.
    """
    expected = by_hand(overrides, asked)
    way = (expected - by_hand(overrides, [])).norm()
    assert way > 0.01
    assert (flat(model) - expected).norm() < 1e-2 * way


@pytest.mark.parametrize("optimizer", WEIGHTS)
def test_is_the_recursion_of_the_papers(tmp_path, optimizer):
    settings = {"optimizer": optimizer, "clip-norm": 0.5, "weight-decay": 0.01}
    rounds, model = simulate(tmp_path, **settings)
    asked = [line["asked"] for line in rounds[1:]]
    assert_follows(model, settings, asked)


def test_client_that_was_not_asked_corrects_at_its_own_last_point(tmp_path):
    settings = {"optimizer": "mu2(floored)", "fraction-train": 0.7}
    settings |= {"num-server-rounds": 6}
    rounds, model = simulate(tmp_path, **settings)
    asked = [line["asked"] for line in rounds[1:]]
    assert len({tuple(partitions) for partitions in asked}) > 1
    assert_follows(model, settings, asked)


def test_running_statistics_are_those_at_the_query_point_alone(tmp_path):
    """Batch normalisation averages what it sees at x_t, not what it sees at x_{t-1}."""
    settings = {"model": "paper", "local-steps": 1, "optimizer": "mu2(floored)"}
    _, model = simulate(tmp_path, **settings)
    assert model["1.num_batches_tracked"] == 4
    assert_follows(model, settings, [[0, 1, 2]] * 4)


def build_model_of(overrides):
    config = RunConfig.of(APP.run_config(SMALL, overrides))
    return build_model(load_held_out(config), config)


def train_once(arrays, context, server_round):
    content = RecordDict({"arrays": ArrayRecord(arrays)})
    content["config"] = ConfigRecord({"server-round": server_round})
    reply = honest.app(Message(content, 1, "train"), context)
    return reply.content["arrays"].to_torch_state_dict()


def test_lost_state_starts_afresh():
    """A client without its state sends the plain gradient, as in its first round."""
    config = APP.run_config(SMALL, {"optimizer": "mu2(floored)"})
    InProcessGrid(honest.app, 1)  # says that this process may create messages

    def context():
        node = {"partition-id": 0, "num-partitions": 3}
        return Context(1, 1, node, RecordDict(), config)

    model = build_model_of({}).state_dict()
    kept = context()
    train_once(model, kept, 1)
    further = train_once({k: v + 0.01 for k, v in model.items()}, kept, 2)
    lost = train_once({k: v + 0.01 for k, v in model.items()}, context(), 2)
    plain_config = {**config, "optimizer": "sgd"}
    plain = context()
    plain.run_config = plain_config
    gradient_only = train_once({k: v + 0.01 for k, v in model.items()}, plain, 2)
    for name in model:
        torch.testing.assert_close(lost[name], gradient_only[name])
    assert any(not torch.allclose(further[name], lost[name]) for name in model)


def test_vectors_are_what_colluders_see(tmp_path):
    """−ε·mean of the honest vectors, blown up, turns the mean of all around."""
    overrides = {"num-nodes": 5, "optimizer": "momentum", "learning-rate": 0.05}
    honest_rounds, _ = simulate(tmp_path / "1", **overrides)
    attacked, _ = simulate(
        tmp_path / "2",
        **overrides,
        **{"attack": "ipm(epsilon=9)", "num-malicious-nodes": 1},
    )
    assert attacked[-1]["loss"] > attacked[0]["loss"] > honest_rounds[-1]["loss"]


def test_evaluation_on_the_server_may_be_rare(tmp_path):
    rounds, _ = simulate(tmp_path, **{"evaluate-every": 3})
    assert [line["round"] for line in rounds if "accuracy" in line] == [0, 3, 4]


def test_validation_data_are_a_tenth_of_what_clients_would_have():
    sizes = {}
    for held_out in ("test", "validation"):
        config = RunConfig.of(APP.run_config(SMALL, {"evaluate-on": held_out}))
        parts = [load_train(config, i, 3) for i in range(3)]
        sizes[held_out] = sum(map(len, parts)), len(load_held_out(config))
    (train, test), (less, validation) = sizes["test"], sizes["validation"]
    assert less + validation == train
    assert validation == pytest.approx(train / 10, abs=1)
    assert test != validation
