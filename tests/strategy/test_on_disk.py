"""Replies on disk: the result is the same, and memory is bounded."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.messages.schema import ReplySchema
from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    GracePeriodGrid,
    Observed,
    OnDiskGrid,
    RobustStrategy,
    on_disk,
)

SHAPES = {"a": (300, 20), "empty": (0,), "b": (7,), "c": ()}


def client(shapes, dtype=np.float32):
    app = ClientApp()

    @app.train()
    def train(message, context):
        rng = np.random.default_rng(context.node_config["partition-id"])
        arrays = ArrayRecord(
            {
                key: Array(np.asarray(rng.standard_normal(shape), dtype))
                for key, shape in shapes.items()
            }
        )
        content = {"arrays": arrays, "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    return app


def run(kind, shapes, n, rule="ctma(gm)", dtype=np.float32, **settings):
    arrivals = ArrivalGrid(client(shapes, dtype), n, FixedDurations((1.0,) * n))
    initial = {key: Array(np.zeros(shape, dtype)) for key, shape in shapes.items()}
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=n)
    strategy = RobustStrategy(inner, rule, num_malicious_nodes=2)
    grid = kind(arrivals, 2, **settings)
    return strategy.start(grid, ArrayRecord(initial), num_rounds=2)


@pytest.mark.parametrize("rule", ["ctma(gm)", "ctma(cwmed)", "nnm(cwtm)"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_run_on_disk_is_the_run_in_memory(tmp_path, rule, dtype):
    """To the bit: the same numbers in the same order, wherever they lie."""
    there = run(OnDiskGrid, SHAPES, 7, rule, dtype, folder=tmp_path)
    here = run(GracePeriodGrid, SHAPES, 7, rule, dtype)
    assert there.train_metrics_clientapp[2]["replies-accepted"] == 7
    for key, array in here.arrays.items():
        assert there.arrays[key].data == array.data
    assert list(tmp_path.iterdir()) == []


def train_once(grid):
    asked = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    return grid.send_and_receive(asked)


@pytest.mark.parametrize("size", [1, 60_000, on_disk._SIZE])
def test_what_is_on_disk_is_what_was_sent(tmp_path, monkeypatch, size):
    """A file for each reply, one for two of them, and one for all."""
    monkeypatch.setattr(on_disk, "_SIZE", size)
    here = InProcessGrid(client(SHAPES), 5)
    there = OnDiskGrid(InProcessGrid(client(SHAPES), 5), 1, tmp_path)
    for one, other in zip(train_once(here), train_once(there), strict=True):
        for key, array in one.content["arrays"].items():
            held = other.content["arrays"][key].data
            assert isinstance(held, memoryview) and held == array.data
    assert list(tmp_path.iterdir()) == []


def handles():
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at handles in /proc")
def test_many_replies_take_few_file_handles():
    """Of which a process may often have no more than 1024."""
    grid = OnDiskGrid(InProcessGrid(client(SHAPES), 100), 3)
    before = handles()
    replies = train_once(grid)
    assert handles() <= before + 2
    del replies, grid
    assert handles() <= before


def test_what_lies_on_disk_is_counted_as_received(tmp_path):
    lines = []
    grid = OnDiskGrid(InProcessGrid(client(SHAPES), 5), 1, tmp_path)
    initial = {k: Array(np.zeros(shape, np.float32)) for k, shape in SHAPES.items()}
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=5, min_available_nodes=5)
    strategy = Observed(RobustStrategy(inner, num_malicious_nodes=1), lines.append)
    strategy.start(grid, ArrayRecord(initial), num_rounds=1)
    assert lines[1]["bytes-received"] == lines[1]["bytes-sent"] > 0


@pytest.mark.parametrize(
    "content",
    [
        Error(5, "gone"),
        RecordDict({"metrics": MetricRecord({"a": 1})}),
        RecordDict({"arrays": ArrayRecord({})}),
    ],
    ids=["error", "no record", "empty record"],
)
def test_replies_without_arrays_stay_as_they_are(tmp_path, content, caplog):
    app = ClientApp()
    app.train()(lambda message, context: Message(content, reply_to=message))
    (reply,) = train_once(OnDiskGrid(InProcessGrid(app, 1), 0, tmp_path / "missing"))
    assert reply.has_error() == isinstance(content, Error)
    assert "stays in memory" not in caplog.text


def test_a_disk_that_takes_nothing_costs_no_reply(tmp_path):
    result = run(OnDiskGrid, SHAPES, 5, folder=tmp_path / "missing")
    assert result.train_metrics_clientapp[2]["replies-accepted"] == 5


def test_adapters_are_aggregated_where_the_server_sends_only_adapters():
    """A reply holds the keys that were sent: a part of the model is sent as a model."""
    whole = {"base": Array(np.zeros(9)), "lora.a": Array(np.zeros((2, 3)))}
    adapter = ArrayRecord({"lora.a": whole["lora.a"]})
    content = RecordDict({"arrays": adapter, "metrics": MetricRecord()})
    (row,) = ReplySchema(adapter).read(content).rows
    assert row.shape == (6,)
    found = ReplySchema(ArrayRecord(whole)).read(content)
    assert (found.reason, found.detail) == ("keys", "1 missing, such as 'base'")


LIMITED = """
import resource, sys
import numpy as np
from tests.strategy import test_on_disk
from flwr_ctma.strategy import OnDiskGrid, GracePeriodGrid

kind = OnDiskGrid if sys.argv[1] == "disk" else GracePeriodGrid
test_on_disk.run(kind, {"w": (10,)}, 5)  # threads and buffers that stay
(used,) = [
    int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line
]
limit = used * 1024 + 150 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
result = test_on_disk.run(kind, {"w": (2**21,)}, 40)
assert result.train_metrics_clientapp[2]["replies-accepted"] == 40
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory differ")
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_replies_of_320_mb_in_150_mb(kind):
    """What is mapped from a file is not counted: the system may drop it any time."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, kind],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    if kind == "disk":
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        assert done.returncode != 0 and "emory" in done.stderr
