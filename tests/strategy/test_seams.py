"""Seams between strategies, each of which once lost something without a word."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
)

from flwr_ctma.simulation import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    Checkpointed,
    DivergenceGuard,
    Observed,
    RobustStrategy,
)
from flwr_ctma.strategy.wrappers.base import StrategyWrapper

N = 5
MODEL = {
    "w": np.zeros(2, np.float32),
    "half": np.zeros(3, np.float16),
    "bn.num_batches_tracked": np.array(0),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
}


def record(arrays):
    return ArrayRecord({key: Array(np.asarray(v)) for key, v in arrays.items()})


def client(fails=lambda partition, number: False, metrics=lambda partition: {}):
    """A step of 1 + partition/8 in each array of numbers."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        partition = int(context.node_config["partition-id"])
        number = message.content["config"].get("server-round", 0)
        if fails(partition, number):
            raise RuntimeError("no data here")
        arrays = {}
        for key, array in message.content["arrays"].items():
            values = array.numpy()
            step = 0 if values.dtype.kind == "b" else 1 + partition / 8
            arrays[key] = (values + step).astype(values.dtype)
        said = MetricRecord({"num-examples": 1, "loss": 1.0, **metrics(partition)})
        content = {"arrays": record(arrays), "metrics": said}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(strategy, rounds=2, app=None, model=MODEL, **settings):
    random.seed(3)  # sums of floats depend on the order in which nodes are sampled
    grid = InProcessGrid(app or client(), N)
    return strategy.start(grid, record(model), rounds, **settings)


def robust(strategy=None, **settings):
    strategy = strategy or FedAvg(min_available_nodes=N)
    return RobustStrategy(strategy, num_malicious_nodes=1, **settings)


def forms(arrays):
    return [(key, array.dtype, tuple(array.shape)) for key, array in arrays.items()]


def private(kind, strategy):
    norm = {} if "Adaptive" in kind.__name__ else {"clipping_norm": 1.0}
    return kind(strategy, 0.1, num_sampled_clients=N, **norm)


FLOATS = {"w": MODEL["w"]}
PRIVATE = [
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
]


@pytest.mark.parametrize("kind", PRIVATE)
@pytest.mark.parametrize("failing", [1, N])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_run_under_flowers_privacy_without_a_good_round_fails(kind, failing, rounds):
    """One error reply lets Flower's wrapper skip the round: no rule sees a reply."""
    app = client(fails=lambda partition, number: partition < failing)
    with pytest.raises(RuntimeError, match=r"No round of 1 was aggregated.*outermost"):
        start(private(kind, robust()), rounds, app, FLOATS)


@pytest.mark.accepts_nothing
@pytest.mark.parametrize("around", [StrategyWrapper, lambda s: Observed(s, print)])
def test_a_wrapper_around_flowers_privacy_raises_at_the_end(around):
    app = client(fails=lambda partition, number: partition == 0)
    strategy = around(private(PRIVATE[0], robust()))
    with pytest.raises(RuntimeError, match="No round of 3 was aggregated"):
        start(strategy, 3, app, FLOATS)


def test_a_later_round_that_fails_under_flowers_privacy_is_one_round():
    app = client(fails=lambda partition, number: partition == 0 and number == 2)
    strategy = private(DifferentialPrivacyServerSideFixedClipping, robust())
    assert start(strategy, 3, app, FLOATS).arrays["w"].numpy().mean() > 0.2


def test_a_second_run_under_flowers_privacy_fails_as_the_first_would():
    strategy = private(DifferentialPrivacyServerSideFixedClipping, robust())
    start(strategy, 1, model=FLOATS)
    with pytest.raises(RuntimeError, match="No round of 1 was aggregated"):
        start(strategy, 1, client(fails=lambda partition, number: True), FLOATS)


class Decaying(FedAvg):
    """Both configs change in place, the evaluation's in a list of rates as well."""

    count = 0

    def configure_train(self, server_round, arrays, config, grid):
        seen = (self.count, config["lr"], *self.evaluation)
        self.seen.append(seen)
        config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def configure_evaluate(self, server_round, arrays, config, grid):
        config["threshold"] *= 0.5
        config["rates"][0] += 1.0
        self.count += 1
        self.evaluation = [config["threshold"], config["rates"][0]]
        return super().configure_evaluate(server_round, arrays, config, grid)


@pytest.mark.parametrize("where", ["train", "server"])
@pytest.mark.parametrize("stop", [None, 2])
def test_a_rollback_takes_back_both_configs_whatever_made_the_alarm(
    where, stop, tmp_path
):
    """Round 2 makes an alarm, so round 3 begins as round 1 did."""
    seen = []
    explodes = {"round": 0}

    def measure(number, arrays):
        loss = 1e9 if where == "server" and number == 2 else 1.0
        return MetricRecord({"loss": loss})

    def spoiled(partition):
        return {"loss": 1e9 if where == "train" and explodes["round"] == 2 else 1.0}

    class Numbered(Decaying):
        def configure_train(self, server_round, arrays, config, grid):
            explodes["round"] = server_round
            return super().configure_train(server_round, arrays, config, grid)

    for rounds in [stop, 3] if stop else [3]:
        inner = Numbered(min_available_nodes=N)
        inner.evaluation, inner.seen = [1.0, 0.0], seen
        strategy = DivergenceGuard(robust(inner), rollback=True)
        evaluate = ConfigRecord({"threshold": 1.0, "rates": [0.0]})
        strategy = Checkpointed(strategy, tmp_path) if stop else strategy
        inner.seen = _Untouched(seen)
        # Both rounds of a run that ends after the second are taken back.
        taken_back = pytest.raises(RuntimeError, match="All rounds")
        with taken_back if rounds == stop else nullcontext():
            start(
                strategy,
                rounds,
                client(metrics=spoiled),
                train_config=ConfigRecord({"lr": 1.0}),
                evaluate_config=evaluate,
                evaluate_fn=measure,
            )
    assert seen[1] == (1, 0.5, 0.5, 1.0)
    assert seen[2] == seen[0] == (0, 1.0, 1.0, 0.0)
    assert evaluate["threshold"] == 0.5 and evaluate["rates"] == [1.0]


class _Untouched:
    """A list that a rollback does not take back: a setting of the strategy."""

    def __init__(self, values):
        self._append = values.append

    def append(self, value):
        self._append(value)

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return 1


def test_anytime_sgd_refuses_a_model_of_another_shape():
    strategy = AnyTimeSGD(0.1, "fixed(gamma=0.5)", min_available_nodes=N)
    start(strategy, 1, model={"w": np.zeros(2, np.float32)})
    for model in ({"w": np.zeros(3, np.float32)}, {"v": np.zeros(2, np.float32)}):
        with pytest.raises(ValueError, match=r"arrays\['w'\].*Make a new `AnyTimeSGD`"):
            start(strategy, 1, model=model)


@pytest.mark.parametrize(
    "inner", [FedAvg, FedAdam, lambda: FedAvgM(server_momentum=0.9)]
)
def test_a_robust_round_keeps_exotic_dtypes(inner):
    model = {**MODEL, "long": np.zeros(2, np.float64), "byte": np.zeros(2, np.uint8)}
    result = start(robust(inner()), 2, model=model)
    assert forms(result.arrays) == forms(record(model))
    assert result.arrays["bn.num_batches_tracked"].numpy() == 2


@pytest.mark.parametrize("inner", [FedAvg, lambda: robust(FedAvg()), FedAdam])
def test_a_run_resumes_from_the_model_that_it_returned(inner, tmp_path):
    """FedAvg alone turns integers into floats after its first round."""
    model = {key: MODEL[key] for key in ("w", "bn.num_batches_tracked")}
    first = start(Checkpointed(inner(), tmp_path), 2, model=model)
    returned = {key: array.numpy() for key, array in first.arrays.items()}
    for rounds, given in ((3, returned), (4, model)):
        resumed = start(Checkpointed(inner(), tmp_path), rounds, model=given)
    assert resumed.arrays == start(inner(), 4, model=model).arrays


def test_a_resume_with_another_dtype_is_refused(tmp_path):
    start(Checkpointed(robust(), tmp_path), 2, model=FLOATS)
    with pytest.raises(ValueError, match="another model"):
        half = {"w": MODEL["w"].astype(np.float16)}
        start(Checkpointed(robust(), tmp_path), 3, model=half)


def test_a_strategy_inside_that_returns_no_model_fails_the_run():
    class Skipping(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, super().aggregate_train(server_round, replies)[1]

    with pytest.raises(RuntimeError, match="2 × round without a model from Skipping"):
        start(robust(Skipping()), 2)


def test_a_strategy_inside_that_skips_some_rounds_trains_in_the_others():
    class Sometimes(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return (arrays if server_round == 2 else None), metrics

    assert start(robust(Sometimes()), 3).arrays["w"].numpy().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: {"w": a["w"]}, "missing, such as"),
        (lambda a: {**a, "w": Array(np.zeros(3, np.float32))}, r"'w': \(3,\)"),
        (lambda a: {**a, "x": a["w"]}, "unknown, such as 'x'"),
    ],
)
def test_a_strategy_inside_that_makes_another_model_is_refused(change, said):
    class Growing(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return ArrayRecord(change(dict(arrays))), metrics

    with pytest.raises(ValueError, match=rf"Growing, with .*{said}"):
        start(robust(Growing()), 1)


def test_a_callback_that_changes_its_line_changes_no_other():
    def greedy(line):
        line.get("asked", []).clear()
        line.pop("loss", None)

    lines = []
    start(Observed(robust(), greedy, lines.append), 1)
    assert len(lines[1]["asked"]) == N and lines[1]["loss"] == 1.0


def test_a_rollback_asks_no_excluded_node_again():
    """Node 0 proves itself malicious in round 2, which is taken back."""
    asked = []

    class Liar(StrategyWrapper):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            asked.append(len(replies))
            if server_round == 2:
                content = RecordDict({**replies[0].content})
                forged = Array("float32", (2,), "numpy.ndarray", b"no header")
                content["arrays"] = ArrayRecord({"w": forged})
                replies[0].content = content
            return super().aggregate_train(server_round, replies)

    def measure(number, arrays):
        return MetricRecord({"loss": 1e9 if number == 2 else 1.0})

    strategy = robust(max_rejections=1)
    guard = DivergenceGuard(Liar(strategy), rollback=True)
    start(guard, 3, model=FLOATS, evaluate_fn=measure)
    assert asked == [N, N, N - 1] and len(strategy.exclusion.nodes) == 1


@pytest.mark.parametrize("value", [None, {}, {"n": np.float32(3)}])
def test_a_metrics_function_that_returns_other_things_is_not_silent(value):
    """It sees each accepted reply, and what it returns is kept or an error."""
    seen = []

    def count(contents, weight_key):
        seen.append(len(contents))
        return value if value is None else MetricRecord(value)

    try:
        start(robust(FedAvg(train_metrics_aggr_fn=count)), 1)
    except TypeError as error:
        assert "float32" in str(error)
    assert seen == [N]


def test_a_metrics_function_that_empties_the_replies_does_no_harm():
    def empty(contents, weight_key):
        for content in contents:
            content.clear()
        return MetricRecord({"n": len(contents)})

    inner = FedAvg(train_metrics_aggr_fn=empty, evaluate_metrics_aggr_fn=empty)
    result = start(robust(inner), 2)
    assert result.train_metrics_clientapp[2]["n"] == N
    assert result.evaluate_metrics_clientapp[2]["n"] == N
    assert (result.arrays["w"].numpy() > 2).all()
