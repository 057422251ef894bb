"""Runs that are killed, and disks that are full."""

import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.app import RecordDict as Records
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Result

from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import GracePeriodGrid, OnDiskGrid, RobustStrategy
from flwr_ctma.strategy.wrappers.checkpointed import Checkpointed
from flwr_ctma.tracking.checkpoint import CheckpointError, latest, write
from tests.helpers.kills import bits, kill_again_and_again

ROUNDS = 12
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Half a step to a point of the client's own, with noise of the round's."""
    arrays = message.content.array_records["arrays"]
    number = int(message.content.config_records["config"]["server-round"])
    partition = int(context.node_config["partition-id"])
    rng = np.random.default_rng([partition, number])
    moved = {
        key: (array.numpy() + partition) / 2 + rng.normal(size=array.shape)
        for key, array in arrays.items()
    }
    content = Records({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})})
    content["arrays"] = ArrayRecord(
        {k: _array(np.float32(v)) for k, v in moved.items()}
    )
    return Message(content, reply_to=message)


def _array(values):
    return Array(np.asarray(values))


def start(
    folder: Path | None,
    rounds: int = ROUNDS,
    inner=FedAdam,
    app=client,
    around=lambda grid: grid,
    measure=lambda number: None,
) -> Result:
    """Run with sampling, so that the random state matters as well."""
    strategy = RobustStrategy(
        inner(
            fraction_train=0.7,
            fraction_evaluate=0.0,
            min_train_nodes=7,
            min_available_nodes=11,
        ),
        "ctma(gm)",
        num_malicious_nodes=2,
    )
    if folder is not None:
        strategy = Checkpointed(strategy, folder)
    grid = around(InProcessGrid(app, 11))
    random.seed(7)

    def evaluate(number, arrays):
        measure(number)
        return MetricRecord({"number": number})

    initial = ArrayRecord([np.zeros((3, 5), np.float32), np.ones((), np.float32)])
    return strategy.start(
        grid,
        initial,
        rounds,
        train_config=ConfigRecord(),
        evaluate_fn=evaluate,
    )


@pytest.mark.parametrize("inner", [FedAvg, FedAdam, FedAvgM])
@pytest.mark.parametrize("stop", [1, 5])
def test_resumed_run_ends_with_the_same_bits(tmp_path, inner, stop) -> None:
    whole = start(None, inner=inner)
    start(tmp_path, rounds=stop, inner=inner)
    resumed = start(tmp_path, inner=inner)
    assert bits(resumed.arrays) == bits(whole.arrays)
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp
    assert resumed.evaluate_metrics_serverapp == whole.evaluate_metrics_serverapp


@pytest.mark.parametrize("kind", [OnDiskGrid, GracePeriodGrid])
def test_clients_within_other_grids_keep_what_they_kept(tmp_path, kind) -> None:
    app = ClientApp()

    @app.train()
    def count(message, context):
        seen = context.state.get("seen", MetricRecord({"n": 0}))["n"] + 1
        context.state["seen"] = MetricRecord({"n": seen})
        arrays = message.content["arrays"].to_numpy_ndarrays()
        metrics = MetricRecord({"num-examples": 1, "seen": seen})
        moved = ArrayRecord([np.asarray(x + seen, np.float32) for x in arrays])
        content = Records({"arrays": moved, "metrics": metrics})
        return Message(content, reply_to=message)

    def around(grid):
        return kind(grid, 2)

    whole = start(None, app=app, around=around)
    start(tmp_path, rounds=5, app=app, around=around)
    resumed = start(tmp_path, app=app, around=around)
    assert bits(resumed.arrays) == bits(whole.arrays)
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp


def test_two_runs_in_one_folder_at_once_do_not_delete_each_others_rounds(tmp_path):
    """The later one is resumed, passes the earlier one, and is not passed back."""

    def measure(number):
        if number == 2:
            start(tmp_path, rounds=5)

    with pytest.raises(ValueError, match=r"Another run has saved round 5 there"):
        start(tmp_path, measure=measure)
    assert latest(tmp_path).number == 5


def test_a_save_deletes_drafts_of_killed_runs_and_of_no_other(tmp_path) -> None:
    for number in (1, 2):
        (tmp_path / f".round-{number:08d}.999999").mkdir()
    write(tmp_path, 2, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".round-00000002.999999", "round-00000002"]


def test_finished_run_is_not_run_again(tmp_path) -> None:
    first = start(tmp_path)
    assert bits(start(tmp_path).arrays) == bits(first.arrays)


def test_another_run_in_the_folder_is_refused(tmp_path) -> None:
    start(tmp_path, rounds=1)
    with pytest.raises(ValueError, match=r"`strategy`.*FedAdam.*another folder"):
        start(tmp_path, inner=FedAvg)


def test_a_run_that_is_killed_loses_no_finished_round(tmp_path) -> None:
    kill_again_and_again(start, tmp_path, times=12)


@pytest.mark.long
def test_a_run_that_is_killed_two_hundred_times(tmp_path) -> None:
    kill_again_and_again(start, tmp_path, times=200)


def test_a_full_disk_is_one_error_and_spoils_nothing(tmp_path) -> None:
    """A limit on the size of files stands for a full disk: the write fails half-way."""
    write(tmp_path, 1, {"x": np.arange(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="Could not save round 2"):
            write(tmp_path, 2, {"x": np.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000001"]
    assert latest(tmp_path).number == 1


@pytest.mark.parametrize("name", ["arrays.safetensors", "state.json"])
def test_a_spoiled_checkpoint_falls_back_to_the_one_before(tmp_path, name) -> None:
    for number in (1, 2):
        write(tmp_path, number, {"x": np.full(3, number)})
    spoiled = tmp_path / "round-00000002" / name
    spoiled.write_bytes(spoiled.read_bytes()[:-1])
    assert latest(tmp_path).number == 1


@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", '{"sha256": 3', "[" * 100_000, '{"state": [[]]}']
)
def test_a_state_that_nobody_of_us_wrote_is_passed_over(tmp_path, text, caplog) -> None:
    write(tmp_path, 1, {})
    spoiled = write(tmp_path, 2, {})
    (spoiled / "state.json").write_text(text)
    assert latest(tmp_path).number == 1
    assert "round-00000002 is not whole" in caplog.text


def test_a_run_whose_checkpoints_are_all_spoiled_keeps_its_new_ones(tmp_path) -> None:
    start(tmp_path, rounds=5)
    for spoiled in tmp_path.glob("round-*/state.json"):
        spoiled.unlink()
    start(tmp_path, rounds=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round-00000002", "round-00000003"]
    assert latest(tmp_path).number == 3


def test_what_comes_back_is_what_was_saved(tmp_path) -> None:
    state = {
        "a": np.array(2.5, np.float16),
        3: [np.zeros((0, 4)), (True, None, "é", 2**70, float("inf"))],
        "record": ArrayRecord([np.arange(6).reshape(2, 3)]),
    }
    write(tmp_path, 0, state)
    back = latest(tmp_path).state
    assert back["a"].dtype == np.float16 and back["a"].shape == ()
    assert back[3][0].shape == (0, 4) and back[3][1] == state[3][1]
    assert bits(back["record"]) == bits(state["record"])
