"""State and settings that a wrapper keeps, wherever a strategy of one's own holds them.

Each case is kept over a restart with the same bits, or refused with a sentence.
"""

import functools
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from flwr_ctma.simulation import InProcessGrid
from flwr_ctma.simulation.clock import ArrivalGrid, Proportional
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    Checkpointed,
    DivergenceGuard,
    RobustStrategy,
)
from flwr_ctma.strategy.wrappers.base import StrategyWrapper
from flwr_ctma.strategy.wrappers.state import attributes, changes


def record(**arrays):
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in arrays.items()})


def client(fails=False):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if fails:
            raise RuntimeError("no data here")
        partition = int(context.node_config["partition-id"])
        w = message.content["arrays"]["w"].numpy() + 1 + partition / 10
        content = {"arrays": record(w=w), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def grid(fails=False):
    return InProcessGrid(client(fails), 5)


def robust(strategy):
    return RobustStrategy(strategy, num_malicious_nodes=1)


def run(strategy, *rounds, where=None, **settings):
    grid_ = where or grid()
    result = strategy.start(grid_, record(w=np.zeros(2)), *rounds, **settings)
    return result.arrays["w"].numpy().tobytes()


class Decaying(FedAvg):
    """The model of round t is divided by t, which `count` returns."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return record(w=arrays["w"].numpy() / self.count()), metrics


class Slotted(Decaying):
    __slots__ = ("seen",)

    def __init__(self):
        super().__init__()
        self.seen = 0

    def count(self):
        self.seen += 1
        return self.seen


class Delegating(Strategy):
    """A wrapper that knows nothing of this project."""

    def __init__(self, strategy):
        self.strategy = strategy
        self.seen = 0

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["strategy"], name)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        self.seen += 1
        return record(w=arrays["w"].numpy() / self.seen), metrics

    def configure_train(self, *args):
        return self.strategy.configure_train(*args)

    def configure_evaluate(self, *args):
        return self.strategy.configure_evaluate(*args)

    def aggregate_evaluate(self, *args):
        return self.strategy.aggregate_evaluate(*args)

    def summary(self):
        self.strategy.summary()


@pytest.mark.parametrize(
    "strategy", [lambda: robust(Slotted()), lambda: Delegating(robust(FedAvg()))]
)
def test_attributes_out_of_the_ordinary_survive_a_restart(strategy, tmp_path):
    for rounds in (2, 4):
        resumed = run(Checkpointed(strategy(), tmp_path / "a"), rounds)
    assert resumed == run(Checkpointed(strategy(), tmp_path / "b"), 4)


class Counter:
    def __init__(self):
        self.seen = 0

    def __call__(self):
        self.seen += 1
        return self.seen


class Hashed(Counter):
    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return 1


def closure():
    seen = 0

    def count():
        nonlocal seen
        seen += 1
        return seen

    return count


def function():
    def count():
        count.seen += 1
        return count.seen

    count.seen = 0
    return count


@pytest.mark.parametrize(
    "count",
    [
        Counter,
        Hashed,
        closure,
        function,
        lambda: Counter().__call__,
        lambda: functools.partial(Counter()),
        lambda: functools.partial(lambda count: count(), Counter()),
    ],
)
def test_data_that_change_inside_a_setting_are_refused(count, tmp_path):
    strategy = Decaying()
    strategy.count = count()
    with pytest.raises(ValueError, match=r"Decaying\.count"):
        run(Checkpointed(robust(strategy), tmp_path), 2)


@pytest.mark.parametrize("kind", [random.Random, np.random.default_rng])
def test_a_generator_is_a_setting_until_it_is_drawn_from(kind):
    strategy = FedAvg()
    strategy.generator = kind(0)
    begun = attributes(strategy)
    assert "generator" not in changes(strategy, begun)
    strategy.generator.random()
    assert "generator" in changes(strategy, begun)


def test_a_function_that_holds_nan_is_a_setting(tmp_path):
    strategy = Decaying()
    strategy.count = functools.partial(lambda best: 1, best=float("nan"))
    run(Checkpointed(robust(strategy), tmp_path), 2)


def test_a_list_in_the_config_survives_a_restart(tmp_path):
    class Scheduled(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            config["rates"][0] *= 0.5
            rates.append(config["rates"][0])
            return super().configure_train(server_round, arrays, config, grid)

    rates = []
    for rounds in (2, 4):
        strategy = Checkpointed(robust(Scheduled()), tmp_path)
        run(strategy, rounds, train_config=ConfigRecord({"rates": [1.0]}))
    assert rates == [0.5, 0.25, 0.125, 0.0625]


class Twice(FedAvg):
    def start(self, grid, initial_arrays, num_rounds=3, **settings):
        result = super().start(grid, initial_arrays, num_rounds, **settings)
        return super().start(
            grid=grid, initial_arrays=result.arrays, num_rounds=num_rounds, **settings
        )


def test_a_start_with_two_loops_runs_both():
    assert np.frombuffer(run(robust(Twice()), 2))[0] > 4


def test_a_start_with_two_loops_has_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="one loop over rounds"):
        run(Checkpointed(robust(Twice()), tmp_path), 2)


class KeywordsOnly(FedAvg):
    def start(self, *, grid, initial_arrays, num_rounds, **settings):
        self.got = num_rounds
        return super().start(grid, initial_arrays, num_rounds, **settings)


class Short(FedAvg):
    def start(self, grid, arrays, rounds):
        self.got = rounds
        return super().start(grid, arrays, rounds)


class Longer(FedAvg):
    def start(self, grid, initial_arrays, folder="here", num_rounds=4, **settings):
        self.got = num_rounds
        return super().start(grid, initial_arrays, num_rounds, **settings)


@pytest.mark.parametrize(
    ("kind", "rounds", "got"),
    [(KeywordsOnly, [2], 2), (Short, [2], 2), (Longer, [2], 2), (Longer, [], 4)],
)
def test_a_start_of_ones_own_gets_the_arguments_that_it_takes(kind, rounds, got):
    strategy = kind()
    run(robust(strategy), *rounds)
    assert strategy.got == got


def test_a_method_that_an_object_has_of_its_own_sees_each_reply():
    def aggregate_train(server_round, replies):
        replies = list(replies)
        seen.append(len(replies))
        return FedAvg.aggregate_train(strategy, server_round, replies)

    seen, strategy = [], FedAvg()
    strategy.aggregate_train = aggregate_train
    run(robust(strategy), 1)
    assert seen == [5]


def test_a_method_of_an_object_does_not_bypass_the_rule():
    class Own(FedAvg):
        def start(self, *args, **settings):
            return super().start(*args, **settings)

    strategy = Own()
    strategy.aggregate_train = functools.partial(FedAvg.aggregate_train, strategy)
    outer = robust(strategy)
    run(outer, 1)
    assert outer.ledger.to_rows()


def test_an_attribute_set_on_a_wrapper_is_read_inside():
    class Reading(FedAvg):
        def configure_train(self, *args):
            modes.append(getattr(self, "mode", None))
            return super().configure_train(*args)

    modes, outer = [], DivergenceGuard(robust(Reading()))
    outer.mode = "fast"
    run(outer, 1)
    assert modes == ["fast"]


def test_a_new_attribute_of_a_wrapper_of_ones_own_stays_there():
    class Own(StrategyWrapper):
        pass

    outer = Own(FedAvg())
    outer.mode = "fast"
    assert not hasattr(outer.strategy, "mode")


@pytest.mark.accepts_nothing
def test_a_second_run_without_a_good_round_fails_as_the_first_would():
    strategy = robust(FedAvg())
    run(strategy, 1)
    with pytest.raises(RuntimeError, match="No round of 1"):
        run(strategy, 1, where=grid(fails=True))


def test_a_run_of_evaluations_alone_returns_the_model():
    assert run(robust(FedAvg(fraction_train=0.0)), 1) == np.zeros(2).tobytes()


def test_foreign_files_with_names_of_checkpoints_stay(tmp_path):
    (tmp_path / "round-00000001").write_text("mine")
    (tmp_path / "round-00000002").symlink_to("nowhere")
    (tmp_path / "round-00000009").mkdir()
    (tmp_path / "round-00000009" / "thesis.txt").write_text("mine")
    for rounds in (2, 4):
        resumed = run(Checkpointed(robust(FedAvg()), tmp_path), rounds)
    assert resumed == run(robust(FedAvg()), 4)
    assert (tmp_path / "round-00000001.other-1").read_text() == "mine"
    assert (tmp_path / "round-00000002.other-1").is_symlink()
    assert (tmp_path / "round-00000009" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("rule", ["cclip", "ctma(gm)"])
def test_a_second_run_may_train_another_model(rule):
    strategy = RobustStrategy(FedAvg(), rule, num_malicious_nodes=1)
    run(strategy, 1)
    result = strategy.start(grid(), record(w=np.zeros(5)), 2)
    assert (result.arrays["w"].numpy() > 1).all()


def arrivals(fails=False):
    return ArrivalGrid(client(fails), 9, Proportional(power=0))


def asynchronous():
    step = AnyTimeSGD(1 / 9, "fixed(gamma=1)")
    return AsyncRobustStrategy(step, num_malicious_nodes=1, min_available_nodes=9)


def test_a_second_asynchronous_run_trains():
    strategy = asynchronous()
    strategy.start(arrivals(), record(w=np.zeros(2)), 2)
    result = strategy.start(arrivals(), record(w=np.zeros(2)), 3)
    assert (result.arrays["w"].numpy() > 1).all()


@pytest.mark.accepts_nothing
def test_a_second_asynchronous_run_without_a_step_fails():
    strategy = asynchronous()
    strategy.start(arrivals(), record(w=np.zeros(2)), 2)
    with pytest.raises(RuntimeError, match="without a step"):
        strategy.start(arrivals(fails=True), record(w=np.zeros(2)), 2)


@pytest.mark.parametrize(
    "setting",
    [
        {"buffer_keys": "running_mean"},
        {"buffer_keys": None},
        {"weighted_by_key": 5},
        {"max_rejections": float("nan")},
        {"max_rejections": True},
        {"max_rejections": "3"},
        {"node_timeout": "9"},
        {"node_timeout": None},
    ],
)
def test_a_setting_of_a_wrong_type_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        RobustStrategy(FedAvg(), num_malicious_nodes=1, **setting)
