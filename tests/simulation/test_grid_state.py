"""Simulated nodes whose state is saved go on in another process as if nothing was."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations, Proportional
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.tracking.checkpoint import latest, write


def app() -> ClientApp:
    """Clients that count their messages, in records of all three kinds."""
    client = ClientApp()

    @client.query()
    def count(message, context):
        seen = context.state.get("seen", MetricRecord({"n": 0}))["n"] + 1
        context.state["seen"] = MetricRecord({"n": seen})
        context.state["raw"] = ConfigRecord({"n": bytes([seen]), "odd": [True]})
        context.state["array"] = ArrayRecord({"n": Array(np.full(2, seen))})
        assert context.state["raw"]["n"][0] == context.state["array"]["n"].numpy()[1]
        content = {"seen": MetricRecord({"n": seen, "x": message.content["x"]["x"]})}
        return Message(RecordDict(content), reply_to=message)

    return client


def ask(grid, x=0.5):
    content = RecordDict({"x": MetricRecord({"x": x})})
    return [Message(content, node, "query") for node in grid.get_node_ids()]


def saved(grid, folder):
    """Its state, as it comes back from disk."""
    write(folder, 1, grid.state_dict())
    return latest(folder).state


def test_nodes_keep_what_they_kept(tmp_path) -> None:
    first = InProcessGrid(app(), 3)
    for _ in range(3):
        first.send_and_receive(ask(first)[:2])
    keys = first.push_messages(ask(first)[:2])
    second = InProcessGrid(app(), 3)
    second.load_state_dict(saved(first, tmp_path))
    replies = second.pull_messages(keys)
    assert [reply.content["seen"]["n"] for reply in replies] == [4, 4]
    assert not second.pull_messages(keys)
    replies = second.send_and_receive(ask(second))
    assert [reply.content["seen"]["n"] for reply in replies] == [5, 5, 1]


def test_what_comes_too_late_is_not_kept() -> None:
    grid = ArrivalGrid(app(), 3, FixedDurations((1.0, 2.0, 9.0)))
    replies = grid.send_and_receive(ask(grid), timeout=5.0)
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()[:2]
    assert grid.now == 5.0 and grid.state_dict()["waiting"] == {}


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Proportional(np.nan), "power"),
        (lambda: Proportional(rates=(1.0, 0.0)), "rates"),
        (lambda: FixedDurations((1.0, -1.0)), "seconds"),
        (lambda: FixedDurations((np.inf,)), "seconds"),
        (lambda: ArrivalGrid(app(), 3, FixedDurations((1.0, 1.0))), "seconds"),
    ],
)
def test_times_that_are_none_are_named(build, named) -> None:
    with pytest.raises(ValueError, match=f"`{named}` should be"):
        grid = build()
        grid.send_and_receive(ask(grid))


def arrivals(grid, keys, number):
    """The next so many arrivals, each node being asked again at once."""
    found = []
    for _ in range(number):
        (reply,) = grid.pull_messages(keys)
        node = reply.metadata.src_node_id
        keys = [k for k in keys if k != reply.metadata.reply_to_message_id]
        keys += grid.push_messages([m for m in ask(grid, grid.now) if _to(m) == node])
        found.append((grid.now, node, dict(reply.content["seen"])))
    return found, keys


def _to(message):
    return message.metadata.dst_node_id


def test_what_is_on_its_way_arrives_when_it_would_have(tmp_path) -> None:
    first = ArrivalGrid(app(), 4, Proportional(), seed=3)
    _, keys = arrivals(first, first.push_messages(ask(first)), 20)
    second = ArrivalGrid(app(), 4, Proportional(), seed=99)
    second.load_state_dict(saved(first, tmp_path))
    expected, _ = arrivals(first, keys, 20)
    assert arrivals(second, keys, 20)[0] == expected


def test_state_of_another_number_of_nodes_is_refused() -> None:
    state = InProcessGrid(app(), 3).state_dict()
    with pytest.raises(ValueError, match="`grid` should be of 3 nodes"):
        InProcessGrid(app(), 4).load_state_dict(state)
