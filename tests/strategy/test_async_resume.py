"""Asynchronous runs that are killed, and go on."""

from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result

from flwr_ctma.optim.momentum import CorrectedMomentum
from flwr_ctma.simulation.clock import ArrivalGrid, Proportional
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    Checkpointed,
    OnDiskGrid,
)
from flwr_ctma.tracking.checkpoint import latest
from tests.helpers.kills import bits, kill_again_and_again

ROUNDS = 12
NODES = 7
TARGET = np.linspace(-1.0, 1.0, 12)
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """μ²-SGD on ‖x - TARGET‖²/2: momentum in the node's state; node 0 lies."""
    point = message.content["arrays"]["x"].numpy()
    partition = int(context.node_config["partition-id"])
    number = int(message.content["config"]["server-round"])
    shift = 0.1 * np.random.default_rng([partition, number]).normal(size=12)
    momentum = CorrectedMomentum.read(context.state.array_records.get("momentum"))
    momentum = momentum.at({"x": point}, lambda at: {"x": at["x"] - TARGET + shift})
    context.state["momentum"] = momentum.record()
    step = momentum.vector["x"] * (-10 if partition == 0 else 1)
    content = RecordDict({"metrics": MetricRecord({"train-loss": abs(shift[0])})})
    content["arrays"] = ArrayRecord({"x": Array(point - step)})
    return Message(content, reply_to=message)


def start(folder, rounds=ROUNDS, grid=None, rule="ctma(gm)", memory=0.0) -> Result:
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=0.5)"),
        rule,
        num_malicious_nodes=2,
        memory=memory,
    )
    if folder is not None:
        strategy = Checkpointed(strategy, folder)
    grid = ArrivalGrid(client, NODES, Proportional()) if grid is None else grid
    return strategy.start(
        grid,
        ArrayRecord({"x": Array(np.zeros(12))}),
        rounds,
        evaluate_fn=lambda number, arrays: MetricRecord({"number": number}),
    )


@pytest.mark.parametrize(
    ("rule", "memory"), [("ctma(gm)", 0.0), ("cwmed", 0.0), ("caf", 0.9)]
)
@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_run_ends_with_the_same_bits_on_a_virtual_clock(
    tmp_path, rule, memory, stop
) -> None:
    whole = start(None, rule=rule, memory=memory)
    with suppress(RuntimeError):  # no step is taken in one round
        start(tmp_path, rounds=stop, rule=rule, memory=memory)
    resumed = start(tmp_path, rule=rule, memory=memory)
    assert bits(resumed.arrays) == bits(whole.arrays)
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp
    assert resumed.evaluate_metrics_serverapp == whole.evaluate_metrics_serverapp


def test_resumed_run_ends_with_the_same_bits_without_a_clock(tmp_path) -> None:
    whole = start(None, grid=InProcessGrid(client, NODES))
    start(tmp_path, rounds=5, grid=InProcessGrid(client, NODES))
    resumed = start(tmp_path, grid=InProcessGrid(client, NODES))
    assert bits(resumed.arrays) == bits(whole.arrays)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ArrivalGrid(client, NODES, Proportional()), InProcessGrid(client, NODES)),
        (InProcessGrid(client, NODES), ArrivalGrid(client, NODES, Proportional())),
    ],
)
def test_a_grid_with_another_clock_is_refused(tmp_path, first, second) -> None:
    """Replies that are on their way on one would never come on the other."""
    start(tmp_path, rounds=5, grid=first)
    with pytest.raises(ValueError, match=r"`grid` should be of the same kind"):
        start(tmp_path, grid=second)


def test_a_memory_that_a_run_did_not_have_is_refused(tmp_path) -> None:
    start(tmp_path, rounds=5, rule="caf")
    with pytest.raises(ValueError, match=r"`memory` should be 0, as in the run"):
        start(tmp_path, rule="caf", memory=0.9)


def test_a_memory_that_was_left_out_for_a_while_is_not_taken_up(tmp_path) -> None:
    start(tmp_path, rounds=5, rule="caf", memory=0.9)
    start(tmp_path, rounds=6, rule="caf")
    with pytest.raises(ValueError, match=r"`memory` should be 0, as in the run"):
        start(tmp_path, rule="caf", memory=0.9)


def test_messages_survive_within_other_grids(tmp_path) -> None:
    def around():
        return OnDiskGrid(InProcessGrid(client, NODES), 2)

    whole = start(None, grid=around())
    start(tmp_path, rounds=5, grid=around())
    before = latest(tmp_path).state["strategies"][0]["state"]
    assert before["pending"]["messages"]
    assert bits(start(tmp_path, grid=around()).arrays) == bits(whole.arrays)


def test_a_run_that_is_killed_loses_no_finished_round(tmp_path) -> None:
    """Nor any work on its way: the end is the same to the bit."""
    kill_again_and_again(start, tmp_path, times=20)


@pytest.mark.long
def test_a_run_that_is_killed_two_hundred_times(tmp_path) -> None:
    kill_again_and_again(start, tmp_path, times=200)


class Flowers(ArrivalGrid):
    """As Flower's own: it cannot be saved. Its nodes have other ids, or the same."""

    def __init__(self, first=None):
        super().__init__(client, NODES, Proportional())
        if first is not None:
            contexts = enumerate(self._contexts.values(), first)
            self._contexts = dict(contexts)
            self._index = {node: i for i, node in enumerate(self._contexts)}

    @property
    def state_dict(self):
        raise AttributeError


def resumed(folder, grid, rounds=6):
    """The strategy as it is after five rounds, and when it has gone on from there."""
    start(folder, rounds=5, grid=Flowers())
    before = latest(folder).state["strategies"][0]["state"]
    start(folder, rounds, grid)
    return before, latest(folder).state["strategies"][0]["state"]


def test_what_is_lost_on_flowers_grids_is_a_message_a_node(tmp_path) -> None:
    """The nodes have the same ids, as SuperNodes whose SuperLink lives on."""
    before, after = (s["clients"] for s in resumed(tmp_path, Flowers()))
    assert after["steps"] > before["steps"]
    assert after["clients"].keys() == before["clients"].keys()
    for node, client in after["clients"].items():
        was = before["clients"][node]
        assert was["asked"] == was["delivered"] + 1  # one is on its way
        assert client["asked"] == client["delivered"] + 2  # one of them is lost
        assert client["delivered"] >= was["delivered"]
        assert client["count"] >= was["count"]


def test_nodes_with_other_ids_start_anew_and_the_model_goes_on(tmp_path) -> None:
    """As Ray's do: a simulation draws node ids anew for every run."""
    before, after = resumed(tmp_path, Flowers(first=100), rounds=10)
    assert before["step"]["t"] < after["step"]["t"]
    contributions = after["clients"]
    assert set(contributions["clients"]) <= set(range(100, 100 + NODES))
    assert contributions["latest"]["rows"]["rows"][0].shape == (NODES, 12)
    assert len(contributions["clients"]) == NODES
    error = np.linalg.norm(latest(tmp_path).state["arrays"]["x"].numpy() - TARGET)
    assert error < np.linalg.norm(TARGET) / 2
