"""InProcessGrid behaves as Flower's own grids do, in one process."""

import random

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from flwr_ctma.simulation.batched import BatchedGrid, run_batched
from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.simulation.grid import InProcessGrid

TARGETS = np.arange(12.0).reshape(4, 3)


def app_of(answer):
    """Build a ClientApp that answers every message with `answer`."""
    app = ClientApp()
    for register in (app.train, app.evaluate, app.query):
        register()(answer)
    return app


def ask(grid, *, arrays=None):
    """One query to every node, all carrying the same record."""
    content = RecordDict({"arrays": arrays or ArrayRecord([np.zeros(3)])})
    return [Message(content, node, "query") for node in grid.get_node_ids()]


def train(message, context):
    """Gradient steps towards the target of this partition, with noise of its own."""
    seed = (message.content["config"]["server-round"], context.node_id)
    rng = np.random.default_rng(seed)
    x = message.content["arrays"].to_numpy_ndarrays()[0]
    target = TARGETS[context.node_config["partition-id"]]
    for _ in range(5):
        x = x - context.run_config["lr"] * (x - target + 0.1 * rng.normal(size=3))
    metrics = MetricRecord(
        {"num-examples": 1, "loss": float(np.sum((x - target) ** 2))}
    )
    return Message(
        RecordDict({"arrays": ArrayRecord([x]), "metrics": metrics}), reply_to=message
    )


def run(strategy_class, seed=0):
    random.seed(seed)  # Flower samples nodes with it
    grid = InProcessGrid(app_of(train), 4, {"lr": 0.3})
    strategy = strategy_class(fraction_evaluate=0.0)
    return strategy.start(grid, ArrayRecord([np.zeros(3)]), num_rounds=8)


def test_fedavg_reaches_the_mean_of_the_targets():
    result = run(FedAvg)
    np.testing.assert_allclose(
        result.arrays.to_numpy_ndarrays()[0], TARGETS.mean(axis=0), atol=0.2
    )


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
def test_same_seed_same_bits(strategy):
    one, other = run(strategy), run(strategy)
    assert one.arrays == other.arrays
    assert one.train_metrics_clientapp == other.train_metrics_clientapp


def test_is_a_grid_that_a_server_app_can_run_on():
    seen = {}
    app = ServerApp()

    @app.main()
    def main(grid, context):
        seen["replies"] = len(grid.send_and_receive(ask(grid)))

    grid = InProcessGrid(app_of(lambda m, c: Message(m.content, reply_to=m)), 3)
    app(grid, None)
    assert isinstance(grid, Grid)
    assert seen["replies"] == 3
    assert [node.node_id for node in grid.get_nodes()] == grid.get_node_ids()
    assert grid.run.run_id == ask(grid)[0].metadata.run_id


def test_nodes_know_their_partition_and_keep_their_state():
    def count(message, context):
        state = context.state.setdefault("count", MetricRecord({"n": 0}))
        state["n"] += 1 + context.node_config["partition-id"]
        assert context.node_config["num-partitions"] == 3
        return Message(RecordDict({"count": state}), reply_to=message)

    grid = InProcessGrid(app_of(count), 3)
    for expected in ([1, 2, 3], [2, 4, 6]):
        replies = grid.send_and_receive(ask(grid))
        assert [m.content["count"]["n"] for m in replies] == expected
    fresh = InProcessGrid(app_of(count), 3).send_and_receive(ask(grid))
    assert [m.content["count"]["n"] for m in fresh] == [1, 2, 3]


def test_a_client_that_raises_gives_an_error_reply_and_keeps_its_old_state():
    def fail_on_second(message, context):
        state = context.state.setdefault("count", MetricRecord({"n": 0}))
        state["n"] += 1
        state["lr"] = context.run_config["lr"]
        context.run_config["lr"] += 1.0
        if context.node_config["partition-id"] == 1 and state["n"] == 2:
            assert state["lr"] == 1.0
            raise SystemExit("out of memory")
        return Message(RecordDict({"count": state}), reply_to=message)

    run_config = {"lr": 0.0}
    grid = InProcessGrid(app_of(fail_on_second), 3, run_config)
    grid.send_and_receive(ask(grid))
    for _ in range(2):
        good, failed, last = grid.send_and_receive(ask(grid))
        assert not good.has_error() and not last.has_error()
        assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        assert "out of memory" in failed.error.reason
    assert dict(last.content["count"]) == {"n": 3, "lr": 2.0}
    assert run_config == {"lr": 0.0}


def test_a_silent_client_gives_no_reply():
    def silent(message, context):
        if context.node_config["partition-id"] == 1:
            return None
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app_of(silent), 3)
    messages = ask(grid)
    replies = grid.send_and_receive(messages, timeout=3600)
    answered = [m.metadata.reply_to_message_id for m in replies]
    assert answered == [m.metadata.message_id for m in (messages[0], messages[2])]
    assert [m.metadata.src_node_id for m in replies] == [2, 4]


def test_an_error_that_the_app_returns_arrives():
    error = Error(ErrorCode.MOD_FAILED_PRECONDITION, "no budget")
    grid = InProcessGrid(app_of(lambda m, c: Message(error, reply_to=m)), 1)
    (reply,) = grid.send_and_receive(ask(grid))
    assert reply.error == error


@pytest.mark.parametrize("answer", ["not a message", RecordDict()])
def test_an_answer_that_is_no_message_is_an_error_reply(answer):
    grid = InProcessGrid(app_of(lambda m, c: answer), 1)
    (reply,) = grid.send_and_receive(ask(grid))
    assert reply.has_error()


def test_neither_side_changes_what_the_other_holds():
    """The messages of a round share one record, as FedAvg's do."""
    kept = []

    def vandal(message, context):
        arrays = message.content["arrays"]
        assert list(arrays) == ["0", "1"]
        arrays["0"].data = b"nonsense"
        arrays.pop("1")
        message.content["config"]["rates"].append(9.0)
        message.metadata.message_type = "train"
        kept.append(arrays)
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app_of(vandal), 2)
    arrays = ArrayRecord([np.ones(2), np.ones(3)])
    messages = ask(grid, arrays=arrays)
    messages[0].content["config"] = ConfigRecord({"rates": [1.0]})
    replies = grid.send_and_receive(messages)
    assert messages[0].content["config"]["rates"] == [1.0]
    assert messages[0].metadata.message_type == "query"
    np.testing.assert_array_equal(arrays.to_numpy_ndarrays()[0], np.ones(2))
    assert len(replies) == 2 and not any(m.has_error() for m in replies)
    replies[0].content["arrays"].clear()
    assert list(kept[0]) == ["0"]


def test_what_cannot_travel_is_an_error_reply():
    def mutable_payload(message, context):
        array = Array(np.ones(2))
        array.data = bytearray(array.data)
        content = RecordDict({"arrays": ArrayRecord()})
        content["arrays"]["x"] = array
        return Message(content, reply_to=message)

    grid = InProcessGrid(app_of(mutable_payload), 1)
    (reply,) = grid.send_and_receive(ask(grid))
    assert reply.has_error()


def test_a_client_cannot_answer_in_the_name_of_another():
    def impostor(message, context):
        reply = Message(message.content, reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = "1"
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    grid = InProcessGrid(app_of(impostor), 3)
    messages = ask(grid)
    for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert reply.metadata.src_node_id == message.metadata.dst_node_id


def test_push_and_pull_hand_over_each_reply_once():
    grid = InProcessGrid(app_of(lambda m, c: Message(m.content, reply_to=m)), 3)
    first, second, third = grid.push_messages(ask(grid))
    assert len({first, second, third}) == 3
    replies = grid.pull_messages([third, first, "unknown"])
    assert [m.metadata.reply_to_message_id for m in replies] == [third, first]
    (reply,) = grid.pull_messages([first, second, third])
    assert reply.metadata.reply_to_message_id == second


def test_what_the_author_gets_wrong_is_told():
    app = app_of(lambda m, c: None)
    with pytest.raises(ValueError, match=r"`num_nodes` should be at least 1"):
        InProcessGrid(app, 0)


def virtual(app, num_nodes):
    return ArrivalGrid(app, num_nodes, FixedDurations((1.0,) * num_nodes))


@pytest.mark.parametrize("kind", [InProcessGrid, BatchedGrid, virtual])
def test_a_message_to_nobody_is_told_and_holds_up_nobody(kind):
    def wait_for_the_others(message, context):
        run_batched(list, None)
        return Message(RecordDict(), reply_to=message)

    grid = kind(app_of(wait_for_the_others), 2)
    to_nobody = Message(RecordDict(), 99, "query")
    with pytest.raises(ValueError, match=r"Found `dst_node_id = 99`"):
        grid.push_messages([*ask(grid), to_nobody])
