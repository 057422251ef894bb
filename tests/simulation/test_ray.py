"""Clients in two Ray actors reply as they do in this process."""

import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from typer.testing import CliRunner

from flwr_ctma import cli
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy

ray = pytest.importorskip("ray")
from flwr_ctma.simulation.ray import RayGrid  # noqa: E402


def counting_app():
    """Build clients that count their messages; partition 1 raises, 2 is silent."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        partition = int(context.node_config["partition-id"])
        if partition == 1:
            raise RuntimeError("no data here")
        if partition == 2:
            return None
        state = context.state.setdefault("kept", MetricRecord({"messages": 0}))
        state["messages"] += 1
        x = message.content["arrays"]["x"].numpy() + 1 + partition / 10
        metrics = MetricRecord({"num-examples": 1, "process": os.getpid(), **state})
        arrays = ArrayRecord({"x": Array(x)})
        return Message(
            RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message
        )

    return app


@pytest.fixture
def grid():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield RayGrid(counting_app(), 7, workers=2)
    ray.shutdown()


def ask(grid):
    content = {"arrays": ArrayRecord({"x": Array(np.zeros(2))})}
    nodes = grid.get_node_ids()
    return list(
        grid.send_and_receive([Message(RecordDict(content), n, "train") for n in nodes])
    )


def test_actors_keep_state_isolate_errors_and_train_like_one_process(grid):
    ask(grid)
    replies, saved = ask(grid), grid.state_dict()
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 5, 6, 7, 8]
    assert "no data here" in replies[1].error.reason
    metrics = [r.content["metrics"] for r in replies if r.has_content()]
    assert {m["messages"] for m in metrics} == {2}
    assert len({m["process"] for m in metrics}) == 2
    ask(grid)
    grid.load_state_dict(saved)
    counts = [r.content["metrics"]["messages"] for r in ask(grid) if r.has_content()]
    assert set(counts) == {3}

    def trained(where):
        strategy = RobustStrategy(FedAvg(fraction_evaluate=0.0), num_malicious_nodes=2)
        initial = ArrayRecord({"x": Array(np.zeros(2))})
        return strategy.start(where, initial, 2).arrays["x"].numpy()

    expected = trained(InProcessGrid(counting_app(), 7))
    assert expected[0] > 2
    np.testing.assert_array_equal(trained(grid), expected)


def test_wrong_number_of_workers_is_refused(grid):
    with pytest.raises(ValueError, match="`workers` should be at least 1"):
        RayGrid(counting_app(), 3, workers=0)
    with pytest.raises(ValueError, match="`workers` should be at most the 2 CPUs"):
        RayGrid(counting_app(), 7, workers=3)


def test_cpus_that_other_actors_hold_are_not_waited_for(grid, monkeypatch):
    """The two actors of the fixture have both CPUs."""
    monkeypatch.setattr("flwr_ctma.simulation.ray._START", 2)
    with pytest.raises(RuntimeError, match="0 of 1 Ray actors started in 2 s"):
        RayGrid(counting_app(), 3)
    assert len(ask(grid)) == 6  # they still work


def test_an_actor_that_dies_ends_the_run_with_a_sentence(grid):
    ray.kill(grid._workers[0])
    with pytest.raises(RuntimeError, match="A Ray actor with clients died"):
        for _ in range(100):  # it may answer some calls before it dies
            ask(grid)


def test_a_grid_stops_the_ray_that_it_started():
    """Its workers have the priority of this process, at which they do not starve."""
    app = ClientApp()

    @app.query()
    def niceness(message, context):
        metrics = MetricRecord({"niceness": os.nice(0)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    with closing(RayGrid(app, 3, workers=1)) as grid:
        asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        found = {r.content["metrics"]["niceness"] for r in grid.send_and_receive(asked)}
        assert found == {os.nice(0)}
    assert not ray.is_initialized() and "RAY_worker_niceness" not in os.environ


def test_simulate_runs_the_clients_in_ray_actors_with_the_same_result():
    app = Path(__file__).parents[2] / "examples" / "quickstart-numpy"

    def rounds(*options):
        words = ["simulate", str(app), "--num-nodes", "10", "--json", "--quiet"]
        found = CliRunner().invoke(cli.app, [*words, *options])
        assert found.exit_code == 0, found.output
        lines = json.loads(found.stdout)["rounds"][1:]
        return [(line["train_loss"], sorted(line["trimmed"])) for line in lines]

    expected = rounds()
    assert len(expected) > 1 and rounds("--ray") == expected


def test_simulate_refuses_a_batch_in_actors():
    found = CliRunner().invoke(cli.app, ["simulate", "--ray", "--batched"])
    assert found.exit_code == 1 and "given without --ray" in found.stderr
