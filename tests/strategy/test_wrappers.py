"""Every wrapper in every order: it does its work, or the nesting is refused."""

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
    Result,
    Strategy,
)

from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    AttackedStrategy,
    Checkpointed,
    DivergenceGuard,
    Observed,
    RobustStrategy,
)
from flwr_ctma.strategy.wrappers.base import StrategyWrapper
from flwr_ctma.tracking.checkpoint import latest

N, F = 7, 2


def client(fails=False, info=None):
    """A step of 1 + partition/100 towards larger numbers."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        if fails:
            raise RuntimeError("no data here")
        step = 1 + int(context.node_config["partition-id"]) / 100
        arrays = {
            key: np.asarray(array.numpy() + np.asarray(step).astype(array.dtype))
            for key, array in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 1, "train-loss": step})
        content = RecordDict({"metrics": metrics})
        content["arrays"] = ArrayRecord({k: Array(v) for k, v in arrays.items()})
        if info is not None:
            content["info"] = ConfigRecord(info)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(strategy, rounds=2, app=None, **settings):
    random.seed(5)
    initial = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    grid = InProcessGrid(app or client(), N)
    return strategy.start(grid, initial, rounds, **settings)


class Counting(StrategyWrapper):
    """A wrapper of one's own, with state."""

    def __init__(self, strategy):
        super().__init__(strategy)
        self.rounds = 0

    def aggregate_train(self, server_round, replies):
        self.rounds += 1
        return super().aggregate_train(server_round, replies)


@pytest.fixture
def wrappers(tmp_path):
    """Each wrapper, and the proof that it has done its work in two rounds."""
    lines = []
    return {
        "robust": (
            lambda s: RobustStrategy(s, num_malicious_nodes=F),
            lambda s: s.ledger.to_rows(),
        ),
        "attacked": (
            lambda s: AttackedStrategy(s, "ipm(epsilon=0.1)", num_malicious_nodes=F),
            lambda s: len(s.malicious_nodes) == F,
        ),
        "checkpointed": (
            lambda s: Checkpointed(s, tmp_path),
            lambda s: latest(tmp_path).number == 2,
        ),
        "observed": (
            lambda s: Observed(s, lines.append),
            lambda s: (
                {line["round"] for line in lines} == {0, 1, 2}
                and all(len(line["asked"]) == N for line in lines if line["round"])
                and all(line["missing"] == [] for line in lines if line["round"])
            ),
        ),
        "guard": (
            lambda s: DivergenceGuard(s, rollback=True),
            lambda s: len(s.state_dict()["steps"]["values"]) == 2,
        ),
        "counting": (Counting, lambda s: s.rounds == 2),
        "asynchronous": (
            lambda s: AsyncRobustStrategy(s, num_malicious_nodes=F),
            lambda s: s.clients.steps > 0,
        ),
    }


# What the outer one (row) does with the inner one (column): "." it works, else refused.
TABLE = {
    #               robust attacked checkpointed observed guard counting asynchronous
    "robust": "xx..x.x",
    "attacked": ".x....x",
    "checkpointed": "..x....",
    "observed": ".......",
    "guard": "....x.x",
    "counting": ".......",
    "asynchronous": "xxxxxxx",
}
NAMES = [*TABLE]


@pytest.mark.parametrize("inner", NAMES)
@pytest.mark.parametrize("outer", NAMES)
def test_each_wrapper_around_each_other_works_or_is_refused(outer, inner, wrappers):
    step = AnyTimeSGD(1 / N, "fixed(gamma=1)", min_available_nodes=N)
    base = step if inner == "asynchronous" else FedAvg(min_available_nodes=N)
    (wrap_outer, outer_worked), (wrap_inner, inner_worked) = (
        wrappers[outer],
        wrappers[inner],
    )
    inside = wrap_inner(base)
    if TABLE[outer][NAMES.index(inner)] == "x":
        with pytest.raises(ValueError, match="Parameter `"):
            wrap_outer(inside)
        return
    outside = wrap_outer(inside)
    result = start(outside)
    assert (result.arrays["w"].numpy() > 0).all()
    assert outer_worked(outside)
    assert inner_worked(inside)


def test_a_wrapper_that_occurs_once_is_refused_however_deep():
    inside = Observed(Checkpointed(FedAvg(), "a"))
    with pytest.raises(ValueError, match="without another Checkpointed"):
        Checkpointed(inside, "b")


def test_a_loop_that_calls_no_hooks_is_refused_before_round_1(tmp_path):
    """Flower's own wrappers, outermost, start themselves."""
    for inside in (Checkpointed(FedAvg(), tmp_path), Observed(FedAvg(), print)):
        private = DifferentialPrivacyServerSideFixedClipping(inside, 1.0, 1.0, N)
        with pytest.raises(ValueError, match="outermost and call its `start`"):
            start(private)


@pytest.mark.parametrize(
    "order",
    [
        lambda s, f: RobustStrategy(Checkpointed(s, f), num_malicious_nodes=F),
        lambda s, f: Counting(
            RobustStrategy(Checkpointed(s, f), num_malicious_nodes=F)
        ),
        lambda s, f: Checkpointed(
            DivergenceGuard(RobustStrategy(s, num_malicious_nodes=F), True), f
        ),
        lambda s, f: DivergenceGuard(
            RobustStrategy(Checkpointed(s, f), num_malicious_nodes=F), True
        ),
    ],
)
def test_a_checkpoint_at_any_place_resumes_the_whole_chain(order, tmp_path):
    whole = start(order(FedAvgM(server_momentum=0.9), tmp_path / "a"), 4)
    start(order(FedAvgM(server_momentum=0.9), tmp_path / "b"), 2)
    strategy = order(FedAvgM(server_momentum=0.9), tmp_path / "b")
    resumed = start(strategy, 4)
    assert resumed.arrays == whole.arrays
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp
    assert {row["asked"] for row in strategy.ledger.to_rows()} == {8}


class BestModel(FedAvg):
    """As Flower's example advanced-pytorch: a loop of its own, and helpers."""

    def set_folder(self, folder):
        self.folder = folder

    def _save_best(self, number, accuracy, arrays):
        if accuracy > self.best:
            self.best = accuracy
            np.save(self.folder / f"best-{number}.npy", arrays["w"].numpy())

    def configure_train(self, server_round, arrays, config, grid):
        if server_round == 2:
            config["lr"] = config["lr"] * 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def start(
        self,
        grid,
        initial_arrays,
        num_rounds=3,
        timeout=3600,
        train_config=None,
        evaluate_config=None,
        evaluate_fn=None,
        note=None,
    ):
        self.best = 0.0
        self.summary()
        self.logged = []
        evaluate_config = ConfigRecord()
        arrays = initial_arrays
        result = self.result = Result()
        for number in range(1, num_rounds + 1):
            replies = grid.send_and_receive(
                messages=self.configure_train(number, arrays, train_config, grid),
                timeout=timeout,
            )
            found, metrics = self.aggregate_train(number, replies)
            arrays = arrays if found is None else found
            result.arrays = arrays
            self.logged.append(metrics)
            replies = grid.send_and_receive(
                messages=self.configure_evaluate(number, arrays, evaluate_config, grid),
                timeout=timeout,
            )
            metrics = self.aggregate_evaluate(number, replies)
            result.evaluate_metrics_clientapp[number] = metrics
            measured = evaluate_fn(number, arrays)
            self._save_best(number, measured["accuracy"], arrays)
        if note:
            note("ended")
        return result


def accuracy(number, arrays):
    return MetricRecord({"accuracy": float(arrays["w"].numpy().mean())})


@pytest.mark.parametrize(
    "around",
    [
        lambda s, f: RobustStrategy(s, num_malicious_nodes=F),
        lambda s, f: Checkpointed(RobustStrategy(s, num_malicious_nodes=F), f),
        lambda s, f: RobustStrategy(Checkpointed(s, f), num_malicious_nodes=F),
        lambda s, f: Observed(DivergenceGuard(s), print),
    ],
)
def test_a_start_of_ones_own_runs_around_the_robust_round(around, tmp_path):
    """It saves the best model, logs, and gets arguments of its own."""
    notes = []
    strategy = around(BestModel(min_available_nodes=N), tmp_path / "checkpoints")
    strategy.set_folder(tmp_path)
    result = start(
        strategy,
        2,
        train_config=ConfigRecord({"lr": 1.0}),
        evaluate_fn=accuracy,
        note=notes.append,
    )
    assert notes == ["ended"]
    assert strategy.best == pytest.approx(2.06, abs=0.02)
    saved = sorted(path.name for path in tmp_path.glob("best-*"))
    assert saved == ["best-1.npy", "best-2.npy"]
    np.testing.assert_array_equal(
        np.load(tmp_path / "best-2.npy"), result.arrays["w"].numpy()
    )
    if "robust" in str(type(strategy)).lower():
        assert strategy.logged[1]["replies-accepted"] == N


def test_a_start_of_ones_own_is_resumed_with_its_best_value(tmp_path):
    def make():
        strategy = Checkpointed(
            RobustStrategy(BestModel(min_available_nodes=N), num_malicious_nodes=F),
            tmp_path / "checkpoints",
        )
        strategy.set_folder(tmp_path)
        return strategy

    best = []
    for rounds in (2, 4):
        config = ConfigRecord({"lr": 1.0})
        start(make(), rounds, train_config=config, evaluate_fn=accuracy)
        best.append(config["lr"])
    assert best == [0.5, 0.5]
    assert latest(tmp_path / "checkpoints").number == 4
    state = latest(tmp_path / "checkpoints").state["strategies"][-1]["state"]
    assert state["best"] == pytest.approx(4.1, abs=0.1)


def test_attributes_and_methods_of_the_strategy_inside_are_the_wrappers():
    strategy = Observed(RobustStrategy(BestModel(), num_malicious_nodes=F))
    strategy.fraction_train = 0.5
    strategy.set_folder("here")
    inside = strategy.strategy.strategy
    assert inside.fraction_train == 0.5 and inside.folder == "here"
    assert strategy.aggregator == strategy.strategy.aggregator
    with pytest.raises(AttributeError, match="no_such_name"):
        strategy.no_such_name  # noqa: B018
    assert RobustStrategy(FedAvg(), num_malicious_nodes=1).weighted_by_key is None


def test_an_attribute_of_a_wrapper_is_its_own_though_the_name_is_the_same():
    class Named(StrategyWrapper):
        def __init__(self, strategy):
            super().__init__(strategy)
            self.fraction_train = "mine"

    strategy = Named(FedAvg())
    strategy.fraction_train = "still mine"
    assert strategy.strategy.fraction_train == 1.0


def test_a_summary_of_ones_own_is_logged_once(tmp_path):
    class Mine(FedAvg):
        def summary(self):
            summaries.append("mine")

    summaries = []
    start(Checkpointed(RobustStrategy(Mine(), num_malicious_nodes=F), tmp_path), 0)
    assert summaries == ["mine"]


def test_a_wrapper_of_one_strategy_takes_no_other_object():
    for strategy in (FedAvg, None, "fedavg"):
        with pytest.raises(ValueError, match="a Strategy of Flower's Message API"):
            StrategyWrapper(strategy)
    assert isinstance(StrategyWrapper(FedAvg()), Strategy)
    for strategy, remedy in ((FedAvg, r"Make one: `FedAvg\(\)`"), (None, "legacy")):
        with pytest.raises(ValueError, match=remedy):
            RobustStrategy(strategy, num_malicious_nodes=F)


def test_a_deep_copy_of_a_wrapper_is_independent():
    import copy

    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=F)
    copied = copy.deepcopy(strategy)
    copied.fraction_train = 0.5
    assert strategy.strategy.fraction_train == 1.0
