"""What a round of arrivals reports, and what must not end the run or stall it."""

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_ctma.report import write_report
from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.strategy import AnyTimeSGD, AsyncRobustStrategy, Observed
from flwr_ctma.tracking.run_folder import RunFolder
from tests.helpers.stub_superlink import http_grid, raw, upload, upload_objects

NODES = 7
MODEL = np.full(10, 2.0)


def app(silent=(), parameter_error=(), liars=()):
    """Clients that send half of the model; some nothing, NaN, or something far away."""
    client = ClientApp()

    @client.train()
    def train(message, context):
        partition = int(context.node_config["partition-id"])
        if partition in silent:
            return None
        x = message.content["arrays"]["x"].numpy() / 2 + 1e-3 * partition
        if partition in parameter_error:
            x = x * np.nan
        if partition in liars:
            x = x + 100
        content = RecordDict({"metrics": MetricRecord({"train-loss": 0.5})})
        content["arrays"] = ArrayRecord({"x": Array(x)})
        return Message(content, reply_to=message)

    return client


def start(grid, *, f=1, rounds=6, lines=None, **settings):
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=1)"), num_malicious_nodes=f, **settings
    )
    outer = strategy if lines is None else Observed(strategy, lines.append)
    result = outer.start(grid, ArrayRecord({"x": Array(MODEL)}), rounds, timeout=1e6)
    return strategy, result


def test_a_line_tells_who_was_asked_silent_rejected_trimmed_and_how_much() -> None:
    lines = []
    grid = ArrivalGrid(
        app(silent=[6], parameter_error=[1], liars=[2]),
        NODES,
        FixedDurations((1.0,) * 5 + (9.5, 1.0)),
    )
    start(grid, lines=lines, updates_per_round=5)
    nodes = grid.get_node_ids()
    assert [line["round"] for line in lines] == list(range(7))
    last = lines[5]
    assert last["asked"] == nodes
    assert last["missing"] == [nodes[5], nodes[6]]
    assert last["rejected"] == [nodes[1]] and last["trimmed"] == [nodes[2]]
    assert last["train-loss"] == 0.5 and last["seconds"] > 0
    size = len(Array(MODEL).data)
    sent = [line["bytes-sent"] for line in lines[1:]]
    received = [line["bytes-received"] for line in lines[1:]]
    arrived = sum(line["arrivals"] for line in lines[1:])
    assert sum(sent) > sum(received) == arrived * size


def test_round_goes_on_beside_a_node_that_rests() -> None:
    """A node whose reply was rejected rests; the others' replies are waited for."""
    grid = ArrivalGrid(
        app(parameter_error=[1]), NODES, FixedDurations((2.0, 1.0) + (2.0,) * 5)
    )
    _, result = start(grid, rounds=3, updates_per_round=6)
    found = result.train_metrics_clientapp.values()
    assert [metrics["updates-counted"] for metrics in found] == [6, 6, 6]


def test_the_model_is_evaluated_before_the_first_round_and_after_each() -> None:
    grid = ArrivalGrid(app(), NODES, FixedDurations((1.0,) * NODES))
    strategy = AsyncRobustStrategy(AnyTimeSGD(0.1), num_malicious_nodes=1)
    seen = []

    def evaluate(number, arrays):
        seen.append(arrays["x"].numpy())
        return MetricRecord({"number": number}) if number != 1 else None

    initial = ArrayRecord({"x": Array(MODEL)})
    result = strategy.start(grid, initial, 2, evaluate_fn=evaluate)
    history = result.evaluate_metrics_serverapp
    assert {k: m["number"] for k, m in history.items()} == {0: 0, 2: 2}
    np.testing.assert_array_equal(seen[0], MODEL)
    assert len(seen) == 3 and np.any(seen[1] != MODEL)


def test_the_report_shows_rounds_of_arrivals(tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin({"aggregator": "ctma(gm)", "num-server-rounds": 6})
    lines = []
    grid = ArrivalGrid(
        app(silent=[6], liars=[2]), NODES, FixedDurations((1.0,) * NODES)
    )
    start(grid, f=2, lines=lines)
    for line in lines:
        folder.append(line)
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    for name in ("Arrivals", "Steps"):
        average = np.mean([line[name.lower()] for line in lines[1:]])
        assert f"<th scope='col'>{name}</th>" in page
        assert f"<td>{average:.1f}</td>" in page
    said = dict(re.findall(r"aria-label='Node (\d+): ([^']*)'", page))
    found = [said[str(node)] for node in grid.get_node_ids()]
    assert found[2] == "asked 6, trimmed 6, rejected 0, silent 0, in a skipped round 0"
    assert found[6] == "asked 6, trimmed 0, rejected 0, silent 6, in a skipped round 0"
    assert all("silent 0, in a skipped round 0" in text for text in found[:6])


def test_undecodable_reply_costs_its_sender_alone() -> None:
    """On Flower's own grid of a deployment."""

    def answer(node, key):
        if node == 0:
            name, content = raw("RecordDict", [], b"{")
            return upload_objects(key, node, name, {name: content})
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": ArrayRecord({"x": Array(0 * MODEL)}), "metrics": metrics}
        return upload(key, node, RecordDict(content))

    grid, _ = http_grid(NODES, answer)
    strategy, result = start(grid, rounds=10)
    liar, *others = grid.get_node_ids()
    assert strategy.ledger[liar].rejected["undecodable"] > 5
    clients = strategy.clients.clients
    assert min(clients[node].delivered for node in others) >= 8
    assert np.abs(result.arrays["x"].numpy()).max() < 1


class Leaving(ArrivalGrid):
    """Nobody is connected from 5 to 50 s; nobody can be reached from 60 to 70 s."""

    def get_node_ids(self):
        return [] if 5 < self.now < 50 else super().get_node_ids()

    def push_messages(self, messages):
        if 60 < self.now < 70:
            return [None for _ in messages]
        return super().push_messages(messages)


def test_no_round_is_lost_while_nobody_is_there() -> None:
    """As when the SuperLink has lost its nodes for a while."""
    grid = Leaving(app(), NODES, FixedDurations((1.0,) * NODES))
    _, result = start(grid, rounds=40)
    rounds = result.train_metrics_clientapp.values()
    assert all(report["arrivals"] > 0 for report in rounds)
    assert grid.now > 70


def test_a_lost_connection_ends_the_run() -> None:
    class Broken(ArrivalGrid):
        def pull_messages(self, message_ids):
            raise ConnectionError("no SuperLink")

    with pytest.raises(ConnectionError):
        start(Broken(app(), NODES, FixedDurations((1.0,) * NODES)))
