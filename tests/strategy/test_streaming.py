"""Inner products that grow with the replies, against those of all replies at once."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.stack import Moments
from flwr_ctma.messages.schema import ReplySchema
from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.strategy import GracePeriodGrid, RobustStrategy
from flwr_ctma.strategy.backends.streaming import Strips

N, SHAPES = 21, {"a": (300, 20), "b": (7,)}
SENT = {key: np.full(shape, 5, np.float32) for key, shape in SHAPES.items()}


def record(arrays):
    return ArrayRecord({key: Array(array) for key, array in arrays.items()})


def replies(n=N, scale=1.0, spread=1.0):
    ArrivalGrid(ClientApp(), 1, FixedDurations((1.0,)))  # who sends messages
    asked = Message(RecordDict(), 2, "train")
    found = []
    for i in range(n):
        rng = np.random.default_rng(i)
        arrays = {
            key: (sent + scale + spread * rng.standard_normal(sent.shape)).astype("f4")
            for key, sent in SENT.items()
        }
        content = {"arrays": record(arrays), "metrics": MetricRecord()}
        found.append(Message(RecordDict(content), reply_to=asked))
    return found


def stack_of(model, messages):
    read = [model.read(message.content) for message in messages]
    return model.updates(read, model.measured).stack


@pytest.mark.parametrize("pulls", [[1] * N, [N], [3, 18], [10, 10, 1], [0, 20, 1]])
def test_strips_are_the_gram_matrix(pulls):
    """In whatever portions replies come, and in whatever order they are wanted."""
    model, messages = ReplySchema(record(SENT)), replies()
    strips, at = Strips(model, model.read), 0
    for size in pulls:
        strips.arrive(messages[at : at + size])
        at += size
    wanted = messages[3:][::-1]
    rows = strips.place(stack_of(model, wanted))
    assert isinstance(vars(rows)["moments"], Moments)
    expected = stack_of(model, wanted).products(None, None)
    np.testing.assert_allclose(rows.moments.inner(), expected, rtol=1e-5)


def test_a_reply_that_was_put_in_the_place_of_one_is_measured_anew():
    model, messages = ReplySchema(record(SENT)), replies()
    strips = Strips(model, model.read)
    strips.arrive(messages)
    messages[4].content["arrays"] = replies(scale=9.0)[4].content["arrays"]
    rows = strips.place(stack_of(model, messages))
    assert "moments" not in vars(rows)
    expected = stack_of(model, messages).products(None, None)
    np.testing.assert_array_equal(rows.moments.inner(), expected)


def test_bad_replies_leave_no_strip():
    model, messages = ReplySchema(record(SENT)), replies()
    messages[2].content["arrays"]["b"] = Array(np.full(7, np.nan, np.float32))
    messages[5].content["arrays"]["b"] = Array(np.zeros(8, np.float32))
    strips = Strips(model, model.read)
    strips.arrive(messages)
    good = [m for i, m in enumerate(messages) if i not in (2, 5)]
    assert "moments" in vars(strips.place(stack_of(model, good)))


@pytest.mark.parametrize(("scale", "spread"), [(1e3, 1e-2), (1e14, 1e12)])
def test_digits_that_strips_would_lose_are_kept(scale, spread):
    """Far from zero, or near float32's limit, all rows are taken again, with care."""
    model, messages = ReplySchema(record(SENT)), replies(scale=scale, spread=spread)
    strips = Strips(model, model.read)
    strips.arrive(messages)
    found = strips.place(stack_of(model, messages)).moments.about_pivot()
    expected = stack_of(model, messages).moments.about_pivot()
    np.testing.assert_array_equal(found, expected)


def run(backend, rule, monkeypatch):
    app = ClientApp()

    @app.train()
    def train(message, context):
        rng = np.random.default_rng(context.node_config["partition-id"])
        arrays = {
            key: (array.numpy() + rng.standard_normal(array.shape)).astype("f4")
            for key, array in message.content["arrays"].items()
        }
        content = {"arrays": record(arrays), "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    calls = []
    strip = CpuStack.products_with
    monkeypatch.setattr(
        CpuStack, "products_with", lambda *given: calls.append(1) or strip(*given)
    )
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=N)
    strategy = RobustStrategy(inner, rule, num_malicious_nodes=4, backend=backend)
    arrivals = ArrivalGrid(app, N, FixedDurations(tuple(range(1, N + 1))))
    monkeypatch.setattr("flwr_ctma.strategy.grace_period.sleep", lambda seconds: None)
    # What `prepare` does for Flower's grids, which take real time.
    grid = GracePeriodGrid(arrivals, 4, strategy.grace_period, strategy._arrive)
    result = strategy.start(grid, record(SENT), num_rounds=2)
    arrays = [array.numpy().ravel() for array in result.arrays.values()]
    return np.concatenate(arrays), len(calls)


@pytest.mark.parametrize("rule", ["ctma(gm)", "nnm(ctma(cwmed))", "krum", "cwtm"])
def test_a_run_that_streams_is_the_run_that_does_not(rule, monkeypatch):
    found, strips = run("streaming", rule, monkeypatch)
    expected, none = run("local", rule, monkeypatch)
    assert strips == 2 * 2 and none == 0  # after 8 replies, 16 and all
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
