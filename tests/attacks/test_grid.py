"""AttackedGrid: colluders answer one by one, and weigh what they saw by counts."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.aggregators import CTMA, CwMed
from flwr_ctma.attacks import ALIE, IPM, OptimalALIE
from flwr_ctma.attacks.alie import largest_deviation
from flwr_ctma.attacks.grid import AttackedGrid
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.clock import ArrivalGrid, Proportional
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import AnyTimeSGD, AsyncRobustStrategy

START = 10.0


def app(mods=()):
    """Partition i adds i + 1 to the model."""
    client_app = ClientApp(mods=list(mods))

    @client_app.train()
    def train(message, context):
        by = int(context.node_config["partition-id"]) + 1
        arrays = [a + by for a in message.content["arrays"].to_numpy_ndarrays()]
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @client_app.query()
    def query(message, context):
        return Message(RecordDict({}), reply_to=message)

    return client_app


def deliver(grid, partitions, kind="train"):
    """Let partitions deliver one after the other; what each adds to the model."""
    nodes = list(grid.get_node_ids())
    added = []
    for number, partition in enumerate(partitions, start=1):
        arrays = ArrayRecord({"0": Array(np.full(2, START))})
        config = ConfigRecord({"server-round": number})
        content = RecordDict({"arrays": arrays, "config": config})
        ids = grid.push_messages([Message(content, nodes[partition], kind)])
        (reply,) = grid.pull_messages(ids)
        if "arrays" in reply.content:
            assert reply.content.keys() == {"arrays", "metrics"}
            added.append(float(reply.content["arrays"]["0"].numpy()[0] - START))
    return added


def grid_of(attack, num_malicious_nodes=2, mods=()):
    return AttackedGrid(InProcessGrid(app(mods), 5), attack, num_malicious_nodes)


def test_updates_are_weighted_by_counts():
    found = deliver(grid_of(IPM(epsilon=1.0)), [2, 3, 4, 4, 0])
    assert found == [3, 4, 5, 5, -(3 + 4 + 2 * 5) / 4]


def test_alie_counts_updates():
    """Honest 1 + 3 + 1 updates and, at the second malicious one, 2 of theirs."""
    found = deliver(grid_of(ALIE()), [2, 3, 3, 3, 4, 0, 1])
    mean, std = 4.0, math.sqrt(2 / 5)
    for f, sent in zip((1, 2), found[-2:], strict=True):
        assert sent == pytest.approx(mean - largest_deviation(5 + f, f) * std)


def test_latest_update_of_each_client_counts():
    """The attackers' own latest, where they see no others."""
    found = deliver(grid_of("blind(ipm(epsilon=1))"), [2, 0, 1, 0])
    assert found == [3, -1, pytest.approx(-1.5), pytest.approx(-(2 * 1 + 2) / 3)]


def test_before_any_honest_update_colluders_are_honest():
    assert deliver(grid_of(IPM()), [0, 1, 2]) == [1, 2, 3]


def test_attacks_of_single_clients_are_left_to_clients():
    assert deliver(grid_of("signflip"), [2, 0]) == [3, 1]


def test_schedule_goes_by_the_round_that_the_server_writes():
    grid = grid_of("during(ipm(epsilon=1), start=3)")
    assert deliver(grid, [2, 0, 0]) == [3, 1, -3]


def test_aimed_attack_searches_against_its_rule():
    attack = OptimalALIE().against(CTMA(CwMed()), f=0.3)
    *honest, forged = deliver(grid_of(attack), [2, 3, 4, 0])
    assert honest == [3, 4, 5]
    assert forged < 3
    with pytest.raises(ValueError, match="aimed at a rule"):
        grid_of(OptimalALIE())


def test_colluders_without_a_number_are_those_of_the_mod():
    attack = IPM(epsilon=1.0)
    grid = grid_of(attack, None, [ByzantineMod(attack, nodes={3})])
    assert deliver(grid, [0, 1, 3]) == [1, 2, -1.5]


def test_grid_passes_other_attributes_through():
    inner = InProcessGrid(app(), 3)
    inner.clock = lambda: 7.0
    grid = AttackedGrid(inner, IPM(), 1)
    assert grid.clock() == 7.0
    assert grid.run.run_id == inner.run.run_id
    assert list(grid.get_node_ids()) == list(inner.get_node_ids())
    assert deliver(grid, [0, 1], kind="query") == []
    strategy = FedAvg(fraction_evaluate=0.0)
    start = ArrayRecord({"0": Array(np.full(2, START))})
    result = strategy.start(grid, start, num_rounds=1)
    np.testing.assert_allclose(result.arrays["0"].numpy(), START + 2)


TARGET = np.linspace(-1.0, 1.0, 12)


@pytest.mark.parametrize(
    ("rule", "f", "holds"), [("ctma(gm)", 2, True), ("mean", 0, False)]
)
def test_asynchronous_run_under_colluders_holds_by_its_rule(rule, f, holds):
    """The two fastest of nine send −9 times the mean of what others sent last."""
    client_app = ClientApp()

    @client_app.train()
    def train(message, context):
        (point,) = message.content["arrays"].to_numpy_ndarrays()
        arrays = ArrayRecord([point - 0.5 * (point - TARGET)])
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    attack = IPM(epsilon=9.0)
    app = ByzantineMod(attack, nodes={7, 8}).around(client_app)
    grid = AttackedGrid(ArrivalGrid(app, 9, Proportional(1)), attack)
    strategy = AsyncRobustStrategy(AnyTimeSGD(0.1), rule, num_malicious_nodes=f)
    result = strategy.start(grid, ArrayRecord([np.zeros(12)]), 20, timeout=1e6)
    assert grid.colluders.nodes == set(list(grid.get_node_ids())[7:])
    (found,) = result.arrays.to_numpy_ndarrays()
    error = float(np.linalg.norm(found - TARGET) / np.linalg.norm(TARGET))
    assert (error < 0.1) == holds


def test_attacked_grid_has_no_state_dict():
    """A run that is resumed goes on as on Flower's grids, not with half a state."""
    grid = grid_of(IPM())
    assert hasattr(grid.grid, "state_dict") and not hasattr(grid, "state_dict")
