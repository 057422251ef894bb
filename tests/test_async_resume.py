"""Asynchronous runs that are killed, and go on."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result
from kills import bits, kill_again_and_again

from flwr_ctma.arrivals import ArrivalGrid, Proportional
from flwr_ctma.momentum import CorrectedMomentum
from flwr_ctma.simulation import InProcessGrid
from flwr_ctma.strategy import AnyTimeSGD, AsyncRobustStrategy, Checkpointed

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


def start(folder, rounds=ROUNDS, grid=None, rule="ctma(gm)") -> Result:
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=0.5)"), rule, num_malicious_nodes=2
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


@pytest.mark.parametrize("rule", ["ctma(gm)", "cwmed"])
@pytest.mark.parametrize("stop", [1, 7])
def test_resumed_run_ends_with_the_same_bits_on_a_virtual_clock(
    tmp_path, rule, stop
) -> None:
    whole = start(None, rule=rule)
    start(tmp_path, rounds=stop, rule=rule)
    resumed = start(tmp_path, rule=rule)
    assert bits(resumed.arrays) == bits(whole.arrays)
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp
    assert resumed.evaluate_metrics_serverapp == whole.evaluate_metrics_serverapp


def test_resumed_run_ends_with_the_same_bits_without_a_clock(tmp_path) -> None:
    whole = start(None, grid=InProcessGrid(client, NODES))
    start(tmp_path, rounds=5, grid=InProcessGrid(client, NODES))
    resumed = start(tmp_path, grid=InProcessGrid(client, NODES))
    assert bits(resumed.arrays) == bits(whole.arrays)


def test_a_run_that_is_killed_loses_no_finished_round(tmp_path) -> None:
    """Nor any work on its way: the end is the same to the bit."""
    kill_again_and_again(start, tmp_path, times=20)


@pytest.mark.long
def test_a_run_that_is_killed_two_hundred_times(tmp_path) -> None:
    kill_again_and_again(start, tmp_path, times=200)
