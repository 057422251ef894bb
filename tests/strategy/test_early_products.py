"""Inner products that grow with the replies, against those of all replies at once."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.kernels import numpy as plain
from flwr_ctma.engine.stack import Moments
from flwr_ctma.messages.schema import ReplySchema
from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.strategy import GracePeriodGrid, RobustStrategy
from flwr_ctma.strategy.backends import local
from flwr_ctma.strategy.backends.local import Local, LocalRows
from flwr_ctma.strategy.round.replies import Round

N, SHAPES = 21, {"a": (300, 200), "b": (7,)}  # two lanes of columns
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


def read_all(schema, messages):
    return [schema.read(message.content) for message in messages]


def stack_of(schema, messages):
    read = read_all(schema, messages)
    return schema.updates(read, schema.measured).stack


def streamed(messages, order=None):
    """Add messages one after the other, each under its number in the list."""
    schema = ReplySchema(record(SENT))
    rows = LocalRows(schema, needs_products=True)
    read = read_all(schema, messages)
    for i in order if order is not None else range(len(messages)):
        rows.add({str(i): read[i]}, waiting=True)
    return schema, rows


def test_streamed_products_are_the_gram_matrix():
    messages = replies()
    schema, rows = streamed(messages)
    keys = [str(i) for i in range(3, N)][::-1]
    wanted = messages[3:][::-1]
    placed = rows.place(stack_of(schema, wanted), keys)
    assert isinstance(vars(placed)["moments"], Moments)
    expected = stack_of(schema, wanted).products(None, None)
    np.testing.assert_allclose(placed.moments.inner(), expected, rtol=1e-5)


def test_the_order_of_arrival_changes_no_bit():
    messages, keys = replies(), [str(i) for i in range(N)]
    found = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(N)
        schema, rows = streamed(messages, order)
        placed = rows.place(stack_of(schema, messages), keys)
        found.append(placed.moments.inner())
    for products in found:
        np.testing.assert_array_equal(products, found[0])
        np.testing.assert_array_equal(products, products.T)


def test_a_reply_in_the_place_of_another_is_measured_anew():
    messages = replies()
    schema, rows = streamed(messages)
    messages[4] = replies(scale=9.0)[4]
    rows.add({"4": schema.read(messages[4].content)}, waiting=True)
    keys = [str(i) for i in range(N)]
    placed = rows.place(stack_of(schema, messages), keys)
    expected = stack_of(schema, messages).products(None, None)
    np.testing.assert_allclose(placed.moments.inner(), expected, rtol=1e-5)


def test_a_round_inspects_each_reply_once_unless_it_was_exchanged():
    messages, schema = replies(), ReplySchema(record(SENT))
    read, asked = [], [Message(RecordDict(), 2 + i, "train") for i in range(N)]
    for i, message in enumerate(asked):
        message.metadata.__dict__["_message_id"] = str(i)
    messages = [
        Message(m.content, reply_to=a) for m, a in zip(messages, asked, strict=True)
    ]

    def counted(content):
        read.append(content)
        return schema.read(content)

    rows = Local().open_round(schema, True)
    round_ = Round("train", asked, 4, counted, schema=schema, rows=rows)
    round_.receive(messages[:15])
    round_.receive(messages[10:])
    messages[4].content["arrays"] = replies(scale=9.0)[4].content["arrays"]
    found = round_.inspect(messages[::-1])
    assert len(read) == N + 1 and len(found.accepted) == N
    (exchanged,) = (one for one in found.accepted if one.key == "4")
    expected = schema.read(messages[4].content).rows[0]
    np.testing.assert_array_equal(exchanged.reply.rows[0], expected)


@pytest.mark.parametrize(("scale", "spread"), [(1e3, 1e-2), (1e14, 1e12)])
def test_products_that_lose_digits_are_computed_again(scale, spread):
    """Far from zero, and near float32's limit."""
    messages = replies(scale=scale, spread=spread)
    schema, rows = streamed(messages)
    keys = [str(i) for i in range(N)]
    placed = rows.place(stack_of(schema, messages), keys)
    expected = stack_of(schema, messages).moments.about_pivot()
    np.testing.assert_array_equal(placed.moments.about_pivot(), expected)


def run(rule, monkeypatch, early=True, durations=range(1, N + 1)):
    """Return the model, and the number of strips of inner products."""
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

    sizes = []
    products_with = CpuStack.products_with

    def counted(stack, rows):
        if rows is not None and stack.layers[0].width > 100:
            sizes.append(len(rows))
        return products_with(stack, rows)

    monkeypatch.setattr(CpuStack, "products_with", counted)
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=N)
    strategy = RobustStrategy(inner, rule, num_malicious_nodes=4)
    grid = ArrivalGrid(app, N, FixedDurations(tuple(durations)))
    monkeypatch.setattr("flwr_ctma.strategy.grace_period.sleep", lambda seconds: None)
    if early:  # as `prepare_grid` does for Flower's grids, which take real time
        grid = GracePeriodGrid(grid, 4, strategy.grace_period, strategy.receive)
    result = strategy.start(grid, record(SENT), num_rounds=2)
    monkeypatch.setattr(CpuStack, "products_with", products_with)
    arrays = [array.numpy().ravel() for array in result.arrays.values()]
    return np.concatenate(arrays), sizes


@pytest.mark.parametrize("rule", ["ctma(gm)", "nnm(ctma(cwmed))", "krum"])
def test_products_that_are_early_change_no_bit(rule, monkeypatch):
    found, sizes = run(rule, monkeypatch)
    expected, at_once = run(rule, monkeypatch, early=False)
    assert sizes == [8, 8, N - 16] * 2 and at_once == [N] * 2
    np.testing.assert_array_equal(found, expected)
    backwards, _ = run(rule, monkeypatch, durations=range(N, 0, -1))
    np.testing.assert_array_equal(found, backwards)


@pytest.mark.parametrize(
    "rule",
    ["cwtm", "ctma(cwmed)", "hierarchical(ctma(gm))", "lasa", "layerwise(krum)"],
)
def test_a_rule_without_inner_products_of_all_rows_costs_nothing_early(
    rule, monkeypatch
):
    assert run(rule, monkeypatch)[1] == []


def test_without_numba_nothing_is_early(monkeypatch):
    monkeypatch.setattr(local, "cpu_primitives", lambda: plain)
    assert run("ctma(gm)", monkeypatch)[1] == []
