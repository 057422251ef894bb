"""Exclusion: who violates the protocol too often is not asked any more."""

import random

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx

from flwr_ctma.legacy import RobustStrategy as LegacyRobust
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import AttackedStrategy, Checkpointed, RobustStrategy

START = ArrayRecord([np.zeros(4)])
FIRST = 2  # id of the node that has partition 0

honest = ClientApp()


@honest.train()
def train(message, context):
    by = 1 + int(context.node_config["partition-id"]) / 100
    arrays = [a + by for a in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "loss": by})
    content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@honest.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def app(attack, nodes):
    return ByzantineMod(attack, nodes).around(honest)


class Counting(InProcessGrid):
    """Counts what each partition is asked, by the kind of the message."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = {"train": [], "evaluate": []}

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            kind = message.metadata.message_type
            self.asked[kind].append(message.metadata.dst_node_id - FIRST)
        return super().push_messages(messages)

    def times(self, kind="train"):
        return np.bincount(self.asked[kind], minlength=len(self.get_node_ids()))


def run(inside, attack, nodes, n=9, f=2, rounds=6, max_rejections=2):
    strategy = RobustStrategy(
        inside, num_malicious_nodes=f, max_rejections=max_rejections
    )
    grid = Counting(app(attack, nodes), n)
    result = strategy.start(grid, START, num_rounds=rounds)
    return strategy, grid, result


@pytest.mark.parametrize("kind", [FedAvg, FedProx, FedAdam])
def test_violators_are_asked_so_often_and_no_more(kind):
    settings = {"proximal_mu": 0.1} if kind is FedProx else {}
    inside = kind(fraction_evaluate=0.0, **settings)
    strategy, grid, result = run(inside, "nonfinite", nodes=2)
    assert grid.times().tolist() == [2, 2, 6, 6, 6, 6, 6, 6, 6]
    assert strategy.ledger[FIRST].rejected == {"not-finite": 2}
    history = result.train_metrics_clientapp
    assert [history[r]["replies-rejected"] for r in range(1, 7)] == [2, 2, 0, 0, 0, 0]
    assert "nodes-excluded" not in history[2]
    assert set(history[3]["nodes-excluded"]) == {FIRST, FIRST + 1}


def test_nobody_is_excluded_unless_it_is_asked_for():
    inside = FedAvg(fraction_evaluate=0.0)
    _, grid, _ = run(inside, "nonfinite", nodes=2, max_rejections=None)
    assert set(grid.times()) == {6}


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_samples_hold_no_violators_in_the_end(fraction):
    inside = FedAvg(
        fraction_train=fraction, fraction_evaluate=fraction, min_available_nodes=20
    )
    random.seed(1)  # Flower's strategies sample with it
    _, grid, _ = run(inside, "nonfinite", nodes=3, n=20, f=3, rounds=25)
    assert set(grid.times()[:3]) == {2}
    assert min(grid.times()[3:]) > 3


class Ring(FedAvg):
    """Asks five nodes in turn, each with a message of its own, and waits for nobody."""

    def configure_train(self, server_round, arrays, config, grid):
        nodes = list(grid.get_node_ids())
        chosen = [nodes[(server_round + i) % len(nodes)] for i in range(5)]
        for node in chosen:
            config = ConfigRecord({"to": node})
            content = RecordDict({"arrays": arrays, "config": config})
            yield Message(content, node, "train")


def test_a_strategy_that_samples_in_a_way_of_its_own():
    inside = Ring(fraction_evaluate=0.0)
    attack = "malformed(fault=garbage)"  # a proof: no round of five is skipped for it
    _, grid, result = run(inside, attack, nodes=1, n=10, f=2, rounds=20)
    assert grid.times().tolist() == [2] + [10] * 9
    assert len(result.train_metrics_clientapp) == 20
    assert result.arrays.to_numpy_ndarrays()[0][0] > 19


def test_the_model_is_that_of_rejections():
    """To ask violators changes nothing but the time that it takes."""
    models = [
        run(
            FedAvg(fraction_evaluate=0.0),
            "malformed(fault=garbage)",
            nodes=4,
            f=4,
            max_rejections=k,
        )[2].arrays.to_numpy_ndarrays()[0]
        for k in (None, 1, 3)
    ]
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])


def test_violations_in_evaluation_count():
    liar = ClientApp()
    liar.train()(train)

    @liar.evaluate()
    def lie(message, context):
        if int(context.node_config["partition-id"]) == 3:
            return Message(RecordDict({}), reply_to=message)
        return evaluate(message, context)

    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=2, max_rejections=2)
    grid = Counting(liar, 9)
    strategy.start(grid, START, num_rounds=5)
    assert grid.times("evaluate").tolist() == [5, 5, 5, 2, 5, 5, 5, 5, 5]
    assert grid.times("train").tolist() == [5, 5, 5, 2, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("attack", ["scaling(factor=-50)", "malformed(fault=silent)"])
def test_who_is_trimmed_or_silent_is_not_excluded(attack):
    """Nor are the honest, some of whom are trimmed in every round."""
    inside = FedAvg(fraction_evaluate=0.0, min_available_nodes=9)
    strategy, grid, _ = run(inside, attack, nodes=2, rounds=8, max_rejections=1)
    assert set(grid.times()) == {8}
    trimmed = [strategy.ledger[node].trimmed for node in grid.get_node_ids()]
    assert max(trimmed) == 8


def test_colluders_are_trimmed_and_stay():
    strategy = RobustStrategy(
        FedAvg(fraction_evaluate=0.0), num_malicious_nodes=3, max_rejections=1
    )
    attacked = AttackedStrategy(strategy, "ipm(epsilon=5)", num_malicious_nodes=3)
    grid = Counting(honest, 9)
    attacked.start(grid, START, num_rounds=4)
    assert set(grid.times()) == {4}


def test_no_more_than_f_are_excluded():
    """Five of nine break: the worst three go, and the round has its majority."""
    broken = ByzantineMod("during(nonfinite, stop=4)", nodes={3, 4})
    always = ByzantineMod("nonfinite", nodes=3)
    strategy = RobustStrategy(
        FedAvg(fraction_evaluate=0.0), num_malicious_nodes=3, max_rejections=2
    )
    grid = Counting(always.around(broken.around(honest)), 9)
    result = strategy.start(grid, START, num_rounds=8)
    times = grid.times().tolist()
    assert times[5:] == [8] * 4
    assert sum(times[:5]) == 2 * 5 + (8 - 2) * 2
    excluded = {
        tuple(m.get("nodes-excluded", ()))
        for m in result.train_metrics_clientapp.values()
    }
    assert max(map(len, excluded)) == 3


def test_a_resumed_run_knows_who_is_excluded(tmp_path):
    def start(rounds):
        strategy = RobustStrategy(
            FedAvg(fraction_evaluate=0.0), num_malicious_nodes=2, max_rejections=2
        )
        grid = Counting(app("nonfinite", 2), 9)
        Checkpointed(strategy, tmp_path / "run").start(grid, START, num_rounds=rounds)
        return grid.times().tolist()

    assert start(3) == [2, 2] + [3] * 7
    assert start(5) == [0, 0] + [2] * 7


def test_clients_of_the_former_api_are_excluded_as_well():
    strategy = LegacyRobust(
        LegacyFedAvg(
            fraction_evaluate=0.0,
            min_available_clients=9,
            initial_parameters=ndarrays_to_parameters([np.zeros(4)]),
        ),
        num_malicious_nodes=2,
        max_rejections=2,
    )

    class Client(NumPyClient):
        def fit(self, parameters, config):
            return [p + 1 for p in parameters], 1, {}

    app = ClientApp(
        client_fn=lambda context: Client().to_client(),
        mods=[ByzantineMod("nonfinite", nodes=2)],
    )
    server = ServerApp(
        server_fn=lambda context: ServerAppComponents(
            strategy=strategy, config=ServerConfig(num_rounds=5)
        )
    )
    grid = Counting(app, 9)
    server(grid, Context(1, 1, {}, RecordDict(), {}))
    assert grid.times().tolist() == [2, 2] + [5] * 7


@pytest.mark.parametrize("times", [0, -1])
def test_a_number_of_violations_that_is_none(times):
    with pytest.raises(ValueError, match="Parameter `max_rejections`"):
        RobustStrategy(FedAvg(), num_malicious_nodes=1, max_rejections=times)
