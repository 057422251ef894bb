"""Exact μ²-SGD through Flower messages, against plain NumPy that knows no Flower."""

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.optim.momentum import CorrectedMomentum
from flwr_ctma.optim.mu2sgd import Mu2SGD, load_state_record, state_record
from flwr_ctma.optim.schedules import Unaveraged, parse_schedule
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy
from flwr_ctma.strategy.anytime import AnyTimeSGD

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """Thousands of rounds are not worth their lines of log."""
    caplog.set_level("WARNING", logger="flwr")


D = 5
START = np.linspace(-1.0, 1.0, D)
SCHEDULES = {
    "paper": lambda t: (t, 1 / t, 2 / (t + 2)),
    "fixed(storm-beta=0.3, gamma=0.2)": lambda t: (1.0, 0.3, 0.2),
    "floored": lambda t: (
        1.0,
        max(round(1 / t, 3), 0.01),
        max(round(t / sum(range(1, t + 1)), 3), 0.01),
    ),
}
LEARNING_RATES = {"paper": 5e-4}


def sample(client, count):
    """A quadratic for the client's count-th batch: its curvature A and its centre c."""
    rng = np.random.default_rng((client, count))
    half = rng.normal(size=(D, D)) / np.sqrt(D)
    return half @ half.T + 0.1 * np.eye(D), rng.normal(size=D) + 1.0


def plain(schedule, participants, aggregate=None, liars=0, radius=np.inf, decay=0.0):
    """The whole method, clients and server, as the paper writes it."""
    weights, lr = SCHEDULES[schedule], LEARNING_RATES.get(schedule, 0.1)
    w = x = START
    last, trajectory = {}, []
    for round_, clients in enumerate(participants, start=1):
        sent = []
        for client in clients:
            count, query, d = last.get(client, (0, None, None))
            a, c = sample(client, count)
            g = a @ (x - c)
            if count:
                g = g + (1 - weights(count + 1)[1]) * (d - a @ (query - c))
            last[client] = count + 1, x, g
            sent.append(-2 * g if client < liars else g)
        d = (aggregate or mean)(np.array(sent), liars)
        alpha, _, gamma = weights(round_)
        w = w - lr * alpha * (d + decay * x)
        w = w * min(1.0, radius / np.linalg.norm(w))
        x = x + gamma * (w - x)
        trajectory.append(x)
    return np.array(trajectory)


def reply(message, arrays, context, liars=0):
    """The model x - d, or x + 2d from a liar."""
    (sent,) = message.content["arrays"].to_numpy_ndarrays()
    if context.node_config["partition-id"] < liars:
        arrays = sent + 2 * (sent - arrays)
    metrics = MetricRecord({"num-examples": 1})
    record = ArrayRecord({"x": Array(arrays)})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def numpy_client(message, context):
    schedule = parse_schedule(context.run_config["schedule"])
    momentum = CorrectedMomentum.read(context.state.get("momentum"))
    a, c = sample(context.node_config["partition-id"], momentum.count)
    x = {"x": message.content["arrays"]["x"].numpy()}
    momentum = momentum.at(x, lambda point: {"x": a @ (point["x"] - c)}, schedule)
    context.state["momentum"] = momentum.record()
    liars = context.run_config["liars"]
    return reply(message, x["x"] - momentum.vector["x"], context, liars)


def torch_client(message, context):
    """The same with Mu2SGD: one step of size 1 leaves x - d."""
    schedule = Unaveraged(parse_schedule(context.run_config["schedule"]))
    x = nn.Parameter(torch.from_numpy(message.content["arrays"]["x"].numpy()))
    optimizer = Mu2SGD([x], lr=1.0, schedule=schedule)
    load_state_record(optimizer, context.state.get("mu2"))
    state = optimizer.state.get(x)
    count = int(state["step"]) if state else 0
    a, c = map(torch.from_numpy, sample(context.node_config["partition-id"], count))

    def closure():
        optimizer.zero_grad()
        loss = (x - c) @ a @ (x - c) / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    context.state["mu2"] = state_record(optimizer)
    return reply(message, x.detach().numpy(), context)


def app_of(client, seen=None):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if seen is not None:
            round_ = message.content["config"]["server-round"]
            seen.setdefault(round_, []).append(context.node_config["partition-id"])
        return client(message, context)

    return app


def federate(schedule, *, rounds, nodes, client=numpy_client, wrap=None, liars=0, **kw):
    """Run it with Flower; the trajectory of the query points, and who took part."""
    seen, trajectory = {}, []
    run_config = {"schedule": schedule, "liars": liars}
    grid = InProcessGrid(app_of(client, seen), nodes, run_config)
    sampling = {"fraction_train": 1.0, "min_train_nodes": nodes} | kw
    strategy = AnyTimeSGD(
        LEARNING_RATES.get(schedule, 0.1),
        schedule,
        fraction_evaluate=0.0,
        min_available_nodes=nodes,
        **sampling,
    )
    strategy = wrap(strategy) if wrap else strategy
    strategy.start(
        grid,
        ArrayRecord({"x": Array(START)}),
        num_rounds=rounds,
        evaluate_fn=lambda r, arrays: trajectory.append(arrays["x"].numpy()),
    )
    return np.array(trajectory[1:]), [seen[r] for r in range(1, rounds + 1)]


def robust(rule, f):
    return lambda strategy: RobustStrategy(strategy, rule, num_malicious_nodes=f)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("wrap", [None, robust("mean", 0)], ids=["alone", "robust"])
def test_mean_without_attack_is_the_recursion_of_the_paper(schedule, wrap):
    actual, participants = federate(schedule, rounds=200, nodes=3, wrap=wrap)
    expected = plain(schedule, participants)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.linalg.norm(expected[-1] - START) > 0.5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_torch_client_and_a_numpy_client_are_the_same(schedule):
    actual, participants = federate(schedule, rounds=40, nodes=4, client=torch_client)
    expected = plain(schedule, participants)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_clients_correct_at_their_own_last_point_with_their_own_count(schedule):
    random.seed(1)
    sampling = {"fraction_train": 0.5, "min_train_nodes": 2}
    actual, participants = federate(schedule, rounds=60, nodes=6, **sampling)
    assert {len(clients) for clients in participants} == {3}
    assert len({frozenset(clients) for clients in participants}) > 5
    expected = plain(schedule, participants)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"radius": 0.5}, {"weight_decay": 0.4}])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_projection_and_weight_decay(schedule, options):
    actual, participants = federate(schedule, rounds=40, nodes=4, **options)
    expected = plain(
        schedule,
        participants,
        radius=options.get("radius", np.inf),
        decay=options.get("weight_decay", 0.0),
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    assert np.abs(expected - plain(schedule, participants)).max() > 1e-2


def test_a_ball_that_is_not_left_changes_no_bit():
    free, held = (
        federate("paper", rounds=40, nodes=4, radius=radius)[0]
        for radius in (np.inf, 1e3)
    )
    np.testing.assert_array_equal(free, held)


def momentum_client(message, context):
    """Distributed momentum: torch's own SGD, one step of size 1."""
    x = nn.Parameter(torch.from_numpy(message.content["arrays"]["x"].numpy()))
    optimizer = torch.optim.SGD([x], lr=1.0, momentum=0.9, dampening=0.9)
    load_state_record(optimizer, context.state.get("momentum"))
    count = int(message.content["config"]["server-round"]) - 1
    a, c = sample(context.node_config["partition-id"], count)
    x.grad = torch.from_numpy(a @ (x.detach().numpy() - c))
    optimizer.step()
    context.state["momentum"] = state_record(optimizer)
    return reply(message, x.detach().numpy(), context)


def test_resam_is_torch_s_momentum_and_a_server_that_does_not_average():
    actual, participants = federate(
        "fixed(gamma=1)", rounds=60, nodes=5, client=momentum_client
    )
    x, m, expected = START, {}, []
    for count, clients in enumerate(participants):
        for client in clients:
            a, c = sample(client, count)
            g = a @ (x - c)
            m[client] = 0.9 * m[client] + 0.1 * g if client in m else g
        x = x - 0.1 * np.mean([m[client] for client in clients], axis=0)
        expected.append(x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


# Rules, naively: loops over clients, no Gram matrix.


def mean(rows, f):
    return rows.mean(axis=0)


def cwmed(rows, f):
    return np.median(rows, axis=0)


def cwtm(rows, f):
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)


def meamed(rows, f):
    away = np.abs(rows - np.median(rows, axis=0))
    nearest = np.argsort(away, axis=0, kind="stable")[: len(rows) - f]
    return np.take_along_axis(rows, nearest, axis=0).mean(axis=0)


def gm(rows, f):
    y = rows.mean(axis=0)
    for _ in range(500):
        pull = 1 / np.maximum(np.linalg.norm(rows - y, axis=1), 1e-15)
        y = pull @ rows / pull.sum()
    return y


def krum_order(rows, f):
    scores = []
    for i, row in enumerate(rows):
        others = np.delete(rows, i, axis=0)
        scores.append(np.sort(((others - row) ** 2).sum(axis=1))[: len(rows) - f - 2])
    return np.argsort(np.sum(scores, axis=1), kind="stable")


def krum(rows, f):
    return rows[krum_order(rows, f)[0]]


def multikrum(rows, f):
    return rows[krum_order(rows, f)[: len(rows) - f]].mean(axis=0)


def mda(rows, f):
    apart = np.linalg.norm(rows[:, None] - rows, axis=2)
    kept = min(
        combinations(range(len(rows)), len(rows) - f),
        key=lambda subset: apart[np.ix_(subset, subset)].max(),
    )
    return rows[list(kept)].mean(axis=0)


def cge(rows, f):
    return rows[np.argsort(np.linalg.norm(rows, axis=1))[: len(rows) - f]].mean(axis=0)


def trimmed(base):
    def ctma(rows, f):
        away = np.linalg.norm(rows - base(rows, f), axis=1)
        return rows[np.argsort(away, kind="stable")[: len(rows) - f]].mean(axis=0)

    return ctma


def mixed(base):
    def nnm(rows, f):
        near = [
            np.argsort(np.linalg.norm(rows - row, axis=1), kind="stable")
            for row in rows
        ]
        return base(np.array([rows[i[: len(rows) - f]].mean(axis=0) for i in near]), f)

    return nnm


EXACT_GM = "gm(tolerance=1e-14)"
NAIVE = {
    "mean": mean,
    "cwmed": cwmed,
    "cwtm": cwtm,
    "meamed": meamed,
    EXACT_GM: gm,
    "krum": krum,
    "multikrum": multikrum,
    "mda": mda,
    "cge": cge,
    "ctma(mean)": trimmed(mean),
    "ctma(cwmed)": trimmed(cwmed),
    "ctma(cwtm)": trimmed(cwtm),
    f"ctma({EXACT_GM})": trimmed(gm),
    "nnm(cwmed)": mixed(cwmed),
    f"nnm({EXACT_GM})": mixed(gm),
    "ctma(nnm(cwmed))": trimmed(mixed(cwmed)),
    "nnm(ctma(cwmed))": mixed(trimmed(cwmed)),
}
# Their definitions are the aggregators' tests; here it is the method around them.
# Not bucketing: it draws by place, and replies are put in an order of their own.
OTHERS = ["arc(cwtm)", "bulyan", "smea", "caf", "dnc"]


@pytest.mark.parametrize("rule", [*NAIVE, *OTHERS])
def test_seventeen_clients_and_three_liars_under_every_rule(rule):
    aggregate = NAIVE.get(rule) or parse_aggregator(rule)
    actual, participants = federate(
        "fixed(storm-beta=0.3, gamma=0.2)",
        rounds=12,
        nodes=17,
        liars=3,
        wrap=robust(rule, 3),
    )
    expected = plain(
        "fixed(storm-beta=0.3, gamma=0.2)", participants, aggregate, liars=3
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


def one_round(strategy, sent, *received):
    """Hand a strategy the replies of one round."""
    grid = InProcessGrid(ClientApp(), len(received) or 2)
    messages = list(strategy.configure_train(1, sent, ConfigRecord(), grid))
    metrics = MetricRecord({"num-examples": 1})
    return strategy.aggregate_train(
        1,
        [
            Message(
                RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message
            )
            for message, arrays in zip(messages, received, strict=False)
        ],
    )


def test_running_statistics_and_integers_are_as_replied():
    sent = {
        "bn.weight": np.ones(2, np.float32),
        "bn.running_var": np.ones(2, np.float32),
        "bn.num_batches_tracked": np.array(3),
        "scale": np.array(2.0, np.float16),
    }
    received = {
        "bn.weight": np.zeros(2, np.float32),
        "bn.running_var": np.full(2, 5.0, np.float32),
        "bn.num_batches_tracked": np.array(4),
        "scale": np.array(1.0, np.float16),
    }
    sent, received = (
        ArrayRecord({k: Array(v) for k, v in arrays.items()})
        for arrays in (sent, received)
    )
    strategy = AnyTimeSGD(0.5, "fixed(gamma=0.5)")
    arrays, _ = one_round(strategy, sent, received, received)
    leads = {k: v.dtype.name for k, v in strategy.state_dict().items() if k != "t"}
    assert leads == {"lead.bn.weight": "float32", "lead.scale": "float32"}
    assert list(arrays) == list(sent)
    for name, expected in {
        "bn.weight": np.full(2, 0.75, np.float32),
        "bn.running_var": np.full(2, 5.0, np.float32),
        "bn.num_batches_tracked": np.array(4.0),
        "scale": np.array(1.75, np.float16),
    }.items():
        value = arrays[name].numpy()
        assert value.dtype == expected.dtype and value.shape == expected.shape
        np.testing.assert_array_equal(value, expected)


def test_is_fedavg_with_a_step_of_one_and_no_averaging():
    sent, *received = (ArrayRecord([np.full(3, v)]) for v in (1.0, 2.0, 5.0))
    ours, metrics = one_round(AnyTimeSGD(1.0, "fixed(gamma=1)"), sent, *received)
    theirs, expected = one_round(FedAvg(), sent, *received)
    assert ours == theirs and metrics == expected


def test_a_round_without_replies_is_no_step():
    strategy = AnyTimeSGD(0.1)
    before = strategy.state_dict()
    assert one_round(strategy, ArrayRecord([np.ones(2)])) == (None, None)
    assert strategy.state_dict() == before


def test_goes_on_from_its_state_bit_for_bit():
    def strategy():
        return AnyTimeSGD(0.1, min_available_nodes=4, fraction_evaluate=0.0)

    def grid():
        config = {"schedule": "fixed", "liars": 0}
        random.seed(0)
        return InProcessGrid(app_of(numpy_client), 4, config)

    start = ArrayRecord({"x": Array(START)})
    expected = strategy().start(grid(), start, num_rounds=6).arrays
    nodes, first = grid(), strategy()
    halfway = first.start(nodes, start, num_rounds=3).arrays
    second = strategy()
    second.load_state_dict(first.state_dict())
    assert second.start(nodes, halfway, num_rounds=3).arrays == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnyTimeSGD(0.0), "`eta` should be positive"),
        (lambda: AnyTimeSGD(0.1, weight_decay=-1.0), "`weight_decay`"),
        (lambda: AnyTimeSGD(0.1, radius=0.0), "`radius`"),
        (lambda: AnyTimeSGD(0.1, "papers"), "Did you mean `paper`"),
        (lambda: AnyTimeSGD(0.1).load_state_dict({"m": np.ones(2)}), "`state`"),
    ],
)
def test_wrong_values_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
