"""Apps of Flower's former API get the protection of those of the Message API."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server import strategy as legacy
from flwr.serverapp import ServerApp
from flwr.serverapp import strategy as flower

from flwr_ctma import strategy as ours
from flwr_ctma.legacy import RobustStrategy
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid

TARGETS = np.random.default_rng(0).normal(size=(10, 2, 3)) * 0.1 + np.ones((2, 3))
HONEST = TARGETS[3:]


class Quadratic(NumPyClient):
    """Steps towards a target of its own."""

    def __init__(self, partition):
        self.target = TARGETS[partition]

    def fit(self, parameters, config):
        matrix, count = parameters
        moved = matrix + 0.5 * (self.target - matrix)
        return [moved, count + 1], 10, {"drift": 1.0, "note": "fine", "ok": True}

    def evaluate(self, parameters, config):
        loss = float(np.sum((parameters[0] - self.target) ** 2))
        return loss, 10, {"accuracy": 1.0 / (1.0 + loss)}


def app_of(client=Quadratic):
    return ClientApp(lambda context: client(_partition(context)).to_client())


def _partition(context):
    return int(context.node_config["partition-id"])


def average(metrics):
    """As most apps do it: weighted by the number of examples."""
    total = sum(count for count, _ in metrics)
    keys = metrics[0][1]
    return {key: sum(n * m[key] for n, m in metrics) / total for key in keys}


class Run:
    """A run of a legacy app in ten nodes of this process, and what came of it."""

    def __init__(self, client_app, kind=legacy.FedAvg, rounds=3, f=3, **settings):
        random.seed(0)
        self.models = []

        def remember(server_round, parameters, config):
            self.models.append(parameters)

        inside = kind(
            min_fit_clients=10,
            min_evaluate_clients=10,
            min_available_clients=10,
            initial_parameters=ndarrays_to_parameters([np.zeros((2, 3)), np.array(0)]),
            fit_metrics_aggregation_fn=average,
            evaluate_metrics_aggregation_fn=average,
            evaluate_fn=remember,
            **settings,
        )
        self.seen = spy(inside)
        self.strategy = RobustStrategy(inside, num_malicious_nodes=f)
        self.reports = spy(self.strategy)
        config = ServerConfig(num_rounds=rounds)
        components = ServerAppComponents(strategy=self.strategy, config=config)
        app = ServerApp(server_fn=lambda context: components)
        self.grid = InProcessGrid(client_app, 10)
        app(self.grid, Context(1, 1, {}, RecordDict(), {}))

    @property
    def model(self):
        return self.models[-1][0]


def spy(strategy):
    """Note what a strategy is shown and gives, beside what it does."""
    seen = []
    for name in ("aggregate_fit", "aggregate_evaluate"):
        method = getattr(strategy, name)

        def noting(server_round, results, failures, name=name, method=method):
            given = method(server_round, results, failures)
            seen.append((name, results, failures, given))
            return given

        setattr(strategy, name, noting)
    return seen


def test_the_result_is_that_of_the_message_api():
    """The same replies, aggregated once through each of Flower's two APIs."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        matrix, count = message.content["arrays"].to_numpy_ndarrays()
        target = TARGETS[_partition(context)]
        moved = matrix + 0.5 * (target - matrix)
        arrays = ArrayRecord([moved, np.array(count + 1)])
        metrics = MetricRecord({"num-examples": 10})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    attack = ByzantineMod("scaling(factor=-10)", nodes=3)
    inside = flower.FedAvg(fraction_evaluate=0.0, min_available_nodes=10)
    result = ours.RobustStrategy(inside, num_malicious_nodes=3).start(
        InProcessGrid(attack.around(app), 10),
        ArrayRecord([np.zeros((2, 3)), np.array(0)]),
        num_rounds=3,
    )
    run = Run(attack.around(app_of()))
    matrix, count = result.arrays.to_numpy_ndarrays()
    np.testing.assert_allclose(run.model, matrix, rtol=1e-6)
    assert run.models[-1][1] == count == 3


def test_the_strategy_inside_sees_one_good_result():
    run = Run(app_of(), rounds=1)
    fit, evaluate = run.seen
    for name, results, failures, _ in (fit, evaluate):
        assert (len(results), failures) == (1, []), name
    ((_, result),) = fit[1]
    assert result.num_examples == 10
    assert result.metrics == {"drift": 1.0}
    ((_, result),) = evaluate[1]
    losses = np.sum((run.model - TARGETS) ** 2, axis=(1, 2))
    assert result.loss == pytest.approx(np.sort(losses)[3:-3].mean())


FAULTS = {
    "a NaN": lambda m, n, metrics: ([m * np.nan, n], 10, metrics),
    "an infinity": lambda m, n, metrics: ([m - np.inf, n], 10, metrics),
    "another shape": lambda m, n, metrics: ([m.ravel(), n], 10, metrics),
    "one array less": lambda m, n, metrics: ([m], 10, metrics),
    "one array more": lambda m, n, metrics: ([m, n, n], 10, metrics),
    "complex numbers": lambda m, n, metrics: ([m * 1j, n], 10, metrics),
    "a large model": lambda m, n, metrics: ([m + 1e9, n], 10, metrics),
    "many examples": lambda m, n, metrics: ([-9 * m, n], 10**15, metrics),
    "other metrics": lambda m, n, metrics: ([-9 * m, n], 10, {"drift": 1e30}),
    "text for a number": lambda m, n, metrics: ([-9 * m, n], 10, {"drift": "9"}),
    "objects": lambda m, n, metrics: ([m.astype(object), n], 10, metrics),
    "no tuple": lambda m, n, metrics: None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_client_costs_one_result(fault):
    class Faulty(Quadratic):
        def fit(self, parameters, config):
            arrays, _, metrics = super().fit(parameters, config)
            if self.target is not TARGETS[0] and (self.target != TARGETS[0]).any():
                return arrays, 10, metrics
            return FAULTS[fault](*arrays, metrics)

    run = Run(app_of(Faulty), f=1)
    assert len(run.models) == 4
    low, high = TARGETS[1:].min(axis=0), TARGETS[1:].max(axis=0)
    assert ((7 / 8 * low <= run.model) & (run.model <= 7 / 8 * high)).all()
    for _, _, _, (_, metrics) in run.seen:
        assert metrics.get("drift", 1.0) == 1.0


def test_who_did_what_is_in_the_ledger_and_in_the_metrics():
    """Nodes 2, 3 and 4 are partitions 0, 1 and 2."""

    class Mixed(Quadratic):
        def fit(self, parameters, config):
            arrays, count, metrics = super().fit(parameters, config)
            if (self.target == TARGETS[0]).all():
                arrays[0] *= np.nan
            if (self.target == TARGETS[1]).all():
                raise RuntimeError("out of memory")
            if (self.target == TARGETS[2]).all():
                arrays[0] *= -100.0
            return arrays, count, metrics

    run = Run(app_of(Mixed), rounds=3)
    ledger = {row["node"]: row for row in run.strategy.ledger.to_rows()}
    assert ledger[2]["rejected"] == {"not-finite": 3}
    assert ledger[3]["missing"] == 3
    assert ledger[4]["trimmed"] == 3
    assert ledger[5]["rejected"] == {} and ledger[5]["missing"] == 0
    name, *_, (_, metrics) = run.reports[0]
    assert name == "aggregate_fit" and metrics["replies-missing"] == 1
    assert json.loads(metrics["nodes-rejected"]) == [2]


def test_liars_do_not_move_losses_and_metrics_out_of_the_honest_range():
    class Boaster(Quadratic):
        def evaluate(self, parameters, config):
            loss, _, metrics = super().evaluate(parameters, config)
            if any((self.target == target).all() for target in TARGETS[:3]):
                return -1e30, 10**12, {"accuracy": 1e30}
            return loss, 10, metrics

    run = Run(app_of(Boaster))
    losses = np.sum((run.model - HONEST) ** 2, axis=(1, 2))
    loss, metrics = run.seen[-1][3]
    assert losses.min() <= loss <= losses.max()
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (legacy.FedAvgM, {"server_learning_rate": 1.0, "server_momentum": 0.1}),
        (legacy.FedAdam, {"eta": 0.1, "tau": 1e-2}),
        (legacy.FedYogi, {"eta": 0.1, "tau": 1e-2}),
        (legacy.FedProx, {"proximal_mu": 0.1}),
    ],
)
def test_server_optimisers_inside(kind, settings):
    run = Run(
        ByzantineMod("scaling(factor=-10)", nodes=3).around(app_of()),
        kind,
        rounds=40,
        **settings,
    )
    np.testing.assert_allclose(run.model, HONEST.mean(axis=0), atol=0.25)
    assert run.models[-1][1].dtype == np.array(0).dtype


def test_too_few_good_results_leave_the_model_as_it_is(caplog):
    class Absent(Quadratic):
        def fit(self, parameters, config):
            if any((self.target == target).all() for target in TARGETS[:4]):
                raise RuntimeError("out of memory")
            return super().fit(parameters, config)

    run = Run(app_of(Absent))
    np.testing.assert_array_equal(run.model, np.zeros((2, 3)))
    assert "Skipped" in caplog.text


def test_a_malicious_client_may_not_choose_the_initial_model_unnoticed(caplog):
    strategy = RobustStrategy(legacy.FedAvg(), num_malicious_nodes=1)
    assert strategy.initialize_parameters(None) is None
    assert "give the strategy `initial_parameters`" in caplog.text


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (legacy.Krum(), 'aggregator="krum"'),
        (legacy.FedMedian(), 'aggregator="cwmed"'),
        (legacy.FedTrimmedAvg(), 'aggregator="cwtm"'),
        (legacy.FedXgbBagging(), "trees are joined"),
        (legacy.QFedAvg(), "the loss that the client reports"),
        (legacy.DPFedAvgFixed(legacy.FedAvg(), 10, 1.0), "noise"),
        (flower.FedAvg(), "use `flwr_ctma.strategy.RobustStrategy`"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_strategies_that_cannot_be_wrapped_are_refused(strategy, reason):
    with pytest.raises(ValueError) as refusal:
        RobustStrategy(strategy, num_malicious_nodes=1)
    assert reason in str(refusal.value)


def test_nobody_is_asked_and_nothing_happens():
    strategy = RobustStrategy(legacy.FedAvg(fraction_evaluate=0), num_malicious_nodes=1)
    parameters = ndarrays_to_parameters([np.zeros(3)])

    class Nobody:
        def all(self):
            return {}

    assert strategy.configure_evaluate(1, parameters, Nobody()) == []
    assert strategy.aggregate_evaluate(1, [], []) == (None, {})


def test_the_grid_answers_threads_one_after_the_other():
    """Flower's former server sends each message from a thread of its own."""
    grid = InProcessGrid(app_of(), 10)
    messages = [Message(RecordDict(), n, "query") for n in grid.get_node_ids()] * 20
    app = ClientApp()
    app.query()(lambda message, context: Message(RecordDict(), reply_to=message))
    grid = InProcessGrid(app, 10)
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda m: grid.push_messages([m])[0], messages))
    assert len(set(keys)) == len(messages)
