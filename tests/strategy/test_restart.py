"""A run that is stopped and started again ends with the bits of one that was not."""

import json
import logging
import random
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAdam, FedAvg, Result

from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    Checkpointed,
    DivergenceGuard,
    RobustStrategy,
)
from flwr_ctma.strategy.wrappers.base import StrategyWrapper
from flwr_ctma.tracking.checkpoint import is_plain, latest, write

N, F = 11, 2
# As of a model with BatchNorm: 0-d arrays, and integers.
MODEL = {
    "w": np.zeros((2, 3), np.float32),
    "bn.running_mean": np.zeros(3, np.float32),
    "bn.num_batches_tracked": np.array(0),
    "scale": np.array(1.0, np.float32),
}


def record(arrays):
    return ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()})


def client(*mods):
    """A step to a point of the client's own, with noise from NumPy's global state."""
    app = ClientApp(mods=[*mods])

    @app.train()
    def train(message, context):
        partition = int(context.node_config["partition-id"])
        rate = message.content["config"].get("lr", 0.5)
        arrays = {}
        for key, array in message.content["arrays"].items():
            values = array.numpy()
            noise = np.random.normal(size=values.shape)  # noqa: NPY002, the global state
            arrays[key] = (values + rate * (partition - values) + noise).astype(
                values.dtype
            )
        metrics = MetricRecord({"num-examples": 1 + partition, "train_loss": 0.5})
        content = {"arrays": record(arrays), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        loss = np.random.uniform()  # noqa: NPY002, the global state
        metrics = MetricRecord({"num-examples": 1, "loss": loss})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def booster(trees):
    model = {
        "gbtree_model_param": {"num_trees": str(trees), "num_parallel_tree": "1"},
        "iteration_indptr": list(range(trees + 1)),
        "trees": [{"id": i, "leaf": random.random()} for i in range(trees)],
        "tree_info": [0] * trees,
    }
    text = json.dumps({"learner": {"gradient_booster": {"model": model}}})
    return np.frombuffer(text.encode(), np.uint8)


def forest():
    """Clients of Flower's XGBoost app: a tree more, as bytes."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        content = {"arrays": ArrayRecord([booster(1)])}
        content["metrics"] = MetricRecord({"num-examples": 1})
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "auc": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start(strategy, rounds, app=None, initial=MODEL, **settings):
    """Start with the random state of a fresh process."""
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002, the global state
    grid = InProcessGrid(app or client(), N)
    return strategy.start(grid, record(initial), rounds, **settings)


def check_restart(make, tmp_path, **settings):
    """Compare a run of 2 + 2 rounds with one of 4, and with one without checkpoints."""
    whole = start(Checkpointed(make(), tmp_path / "whole"), 4, **settings)
    start(Checkpointed(make(), tmp_path / "parts"), 2, **settings)
    resumed = start(Checkpointed(make(), tmp_path / "parts"), 4, **settings)
    plain = start(make(), 4, **settings)
    for other in (resumed, plain):
        assert [*other.arrays] == [*whole.arrays]
        for key, array in whole.arrays.items():
            assert array.data == other.arrays[key].data
        assert other.train_metrics_clientapp == whole.train_metrics_clientapp
        assert other.evaluate_metrics_clientapp == whole.evaluate_metrics_clientapp
    return whole


SOME = {"fraction_train": 0.7, "min_train_nodes": 7, "min_available_nodes": N}
AVERAGING = {
    "FedAvg": flower.FedAvg,
    "FedAdam": flower.FedAdam,
    "FedAdagrad": flower.FedAdagrad,
    "FedYogi": flower.FedYogi,
    "FedAvgM": lambda **some: flower.FedAvgM(server_momentum=0.9, **some),
    "FedProx": lambda **some: flower.FedProx(proximal_mu=0.1, **some),
    "AnyTimeSGD": lambda **some: AnyTimeSGD(0.1, "fixed(gamma=0.5)", **some),
}
OTHERS = {
    "FedMedian": flower.FedMedian,
    "FedTrimmedAvg": flower.FedTrimmedAvg,
    "Krum": lambda **some: flower.Krum(num_malicious_nodes=1, **some),
    "MultiKrum": lambda **some: flower.MultiKrum(
        num_malicious_nodes=1, num_nodes_to_select=3, **some
    ),
    "Bulyan": lambda **some: flower.Bulyan(num_malicious_nodes=1, **some),
    "QFedAvg": lambda **some: flower.QFedAvg(client_learning_rate=0.1, **some),
}


@pytest.mark.parametrize("kind", AVERAGING)
def test_a_robust_strategy_of_flowers_resumes_with_the_same_bits(kind, tmp_path):
    def make():
        return RobustStrategy(AVERAGING[kind](**SOME), num_malicious_nodes=F)

    result = check_restart(make, tmp_path)
    assert result.train_metrics_clientapp[4]["replies-accepted"] == 7


@pytest.mark.parametrize("kind", {**AVERAGING, **OTHERS})
def test_a_bare_strategy_of_flowers_resumes_with_the_same_bits(kind, tmp_path):
    # Flower's q-FedAvg computes with floats alone.
    initial = {"w": MODEL["w"]} if kind == "QFedAvg" else MODEL
    make = {**AVERAGING, **OTHERS}[kind]
    result = check_restart(lambda: make(**SOME), tmp_path, initial=initial)
    assert (result.arrays["w"].numpy() != 0).any()


@pytest.mark.parametrize("where", ["Server", "Client"])
@pytest.mark.parametrize("how", ["Fixed", "Adaptive"])
def test_differential_privacy_of_flowers_resumes_with_the_same_bits(
    where, how, tmp_path
):
    """Noise comes from NumPy's global state, the clipping norm from the rounds."""
    kind = getattr(flower, f"DifferentialPrivacy{where}Side{how}Clipping")
    norm = {"clipping_norm": 1.0} if how == "Fixed" else {}
    mods = {"Fixed": fixedclipping_mod, "Adaptive": adaptiveclipping_mod}
    app = client(*([mods[how]] if where == "Client" else []))
    initial = {"w": MODEL["w"]}

    def make():
        return kind(FedAvg(**SOME), 0.1, num_sampled_clients=7, **norm)

    check_restart(make, tmp_path, app=app, initial=initial)


@pytest.mark.parametrize("kind", [flower.FedXgbBagging, flower.FedXgbCyclic])
def test_a_forest_of_flowers_resumes_with_the_same_bytes(kind, tmp_path):
    """Cyclic training depends on the order in which nodes registered."""
    initial = {"0": np.empty(0, np.uint8)}

    def make():
        return kind(min_available_nodes=N)

    result = check_restart(make, tmp_path, app=forest(), initial=initial)
    assert len(result.arrays["0"].numpy()) > 100


class Own(FedAvg):
    """A strategy of one's own, with state of every plain kind."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.best, self.count = -np.inf, 0
        self.norms: list = []
        self.rng = np.random.default_rng(7)
        self.own_random = random.Random(7)
        self.logger = logging.getLogger("own")
        self.schedule = lambda number: 1 / number

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] *= 0.5
        self.count += 1
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        w = arrays["w"].numpy()
        self.norms.append(np.float32(np.linalg.norm(w)))
        self.best = max(self.best, float(w.max()))
        self.seen = {"keys": {*arrays}, ("a", 1): b"\x00", "last": metrics}
        moved = w + self.rng.normal(size=w.shape) + self.own_random.random()
        moved += self.best / 10 + self.count + len(self.norms)
        arrays["w"] = Array((moved * self.schedule(server_round)).astype(w.dtype))
        return arrays, metrics


@pytest.mark.parametrize("robust", [False, True])
def test_a_strategy_of_ones_own_resumes_by_its_plain_attributes(robust, tmp_path):
    def make():
        own = Own(**SOME)
        return RobustStrategy(own, num_malicious_nodes=F) if robust else own

    def start_with_rate(strategy, rounds):
        return start(strategy, rounds, train_config=ConfigRecord({"lr": 1.0}))

    whole = start_with_rate(make(), 4)
    start_with_rate(Checkpointed(make(), tmp_path), 2)
    config = ConfigRecord({"lr": 1.0})
    resumed = Checkpointed(make(), tmp_path)
    result = start(resumed, 4, train_config=config)
    assert result.arrays == whole.arrays
    assert config["lr"] == 1 / 16
    assert resumed.count == 4 and len(resumed.norms) == 4


def test_a_setting_that_changes_between_starts_is_taken(tmp_path):
    """Of the strategy and of the config, where a run has not changed it itself."""
    inside = [FedAvg(**SOME), FedAvg(**{**SOME, "fraction_train": 1.0})]
    configs = [
        ConfigRecord({"lr": 0.5, "epochs": 1}),
        ConfigRecord({"lr": 0.5, "epochs": 2}),
    ]
    for rounds, strategy, config in zip((1, 2), inside, configs, strict=True):
        robust = RobustStrategy(strategy, num_malicious_nodes=F)
        result = start(Checkpointed(robust, tmp_path), rounds, train_config=config)
    accepted = result.train_metrics_clientapp
    assert [accepted[i]["replies-accepted"] for i in (1, 2)] == [7, 11]
    assert configs[1]["epochs"] == 2


class Holding(FedAvg):
    """A strategy with an attribute."""

    def __init__(self, value):
        super().__init__(**SOME)
        self.held = value


class Model:
    """An object that changes, as a model or a tracker does."""


@pytest.mark.parametrize("value", [Model(), [Model()], iter([]), Counter({Model(): 1})])
def test_an_attribute_that_cannot_be_saved_is_an_error_at_the_first_save(
    value, tmp_path
):
    asked = []
    app = ClientApp(mods=[lambda m, c, call: asked.append(m) or call(m, c)])
    strategy = Checkpointed(Holding(value), tmp_path)
    with pytest.raises(ValueError, match=r"`Holding.held`.*`state_dict`"):
        start(strategy, 2, app=app)
    assert not asked


def test_a_function_that_is_exchanged_in_the_run_is_an_error(tmp_path):
    class Exchanging(Holding):
        def configure_train(self, server_round, arrays, config, grid):
            self.held = lambda: server_round
            return super().configure_train(server_round, arrays, config, grid)

    with pytest.raises(ValueError, match=r"Exchanging.held"):
        start(Checkpointed(Exchanging(print), tmp_path), 2)


def test_a_state_dict_of_ones_own_is_the_state(tmp_path):
    class Saying(Holding):
        def state_dict(self):
            return {"n": getattr(self.held, "n", 0)}

        def load_state_dict(self, state):
            self.held.n = state["n"]

        def configure_train(self, server_round, arrays, config, grid):
            self.held.n = getattr(self.held, "n", 0) + 1
            return super().configure_train(server_round, arrays, config, grid)

    for rounds in (2, 3):
        strategy = Saying(Model())
        start(Checkpointed(strategy, tmp_path), rounds)
    assert strategy.held.n == 3


class Wrapping(StrategyWrapper):
    """A wrapper of one's own that counts."""

    count = 0

    def configure_train(self, server_round, arrays, config, grid):
        self.count += 1
        return super().configure_train(server_round, arrays, config, grid)


def test_a_wrapper_of_ones_own_resumes_by_its_plain_attributes(tmp_path):
    for rounds in (2, 3):
        strategy = Wrapping(RobustStrategy(FedAdam(**SOME), num_malicious_nodes=F))
        start(Checkpointed(strategy, tmp_path), rounds)
    assert strategy.count == 3


def test_a_rollback_takes_back_attributes_moments_and_config():
    """The second round makes an alarm; the third begins as the first did."""
    seen = []

    class Watched(FedAdam):
        count = 0

        def configure_train(self, server_round, arrays, config, grid):
            seen.append((self.count, config["lr"], hasattr(self, "last"), self.m_t))
            self.count += 1
            self.last = server_round
            config["lr"] *= 0.5
            return super().configure_train(server_round, arrays, config, grid)

    def explode(number, arrays):
        return MetricRecord({"loss": 1e9 if number == 2 else 1.0})

    strategy = RobustStrategy(Watched(**SOME), num_malicious_nodes=F)
    start(
        DivergenceGuard(strategy, rollback=True),
        3,
        train_config=ConfigRecord({"lr": 1.0}),
        evaluate_fn=explode,
    )
    assert [line[:3] for line in seen] == [(0, 1.0, False), (1, 0.5, True), seen[0][:3]]
    assert seen[0][3] is seen[2][3] is None and seen[1][3] is not None


STATES = [
    {"a": np.array(2.5, np.float16), "b": np.float32(1.5), "c": np.array(0)},
    [np.array([1 + 2j]), np.array(["é", "b"]), np.array([b"a"]), np.array([1], ">i4")],
    {1: (True, None, "é", 2**70, float("inf")), ("a", 2): {1, 2}, None: frozenset("a")},
    [b"\x00\xff", bytearray(b"x"), 1 + 2j, OrderedDict(a=1), Counter("aab")],
    [deque([1, 2], maxlen=3), defaultdict(list, a=[1]), np.array(["2026-11-27"], "M8")],
    [MetricRecord({"m": [1.0, 2.0]}), ConfigRecord({"c": b"x", "d": [True]})],
    [
        RecordDict({"r": ArrayRecord([np.zeros((0, 4))])}),
        Array(np.asfortranarray(MODEL["w"])),
    ],
    Result(arrays=record(MODEL), train_metrics_clientapp={1: MetricRecord({"m": 1})}),
]


@pytest.mark.parametrize("state", STATES)
def test_a_saved_value_comes_back_with_its_types_and_bits(state, tmp_path):
    def shape(value):
        if isinstance(value, np.ndarray | np.generic):
            return (type(value), value.dtype.str, value.shape, value.tobytes())
        if isinstance(value, dict | ConfigRecord | MetricRecord | RecordDict):
            return (type(value), [(shape(k), shape(v)) for k, v in value.items()])
        if isinstance(value, list | tuple | deque):
            return (type(value), getattr(value, "maxlen", 0), [*map(shape, value)])
        if isinstance(value, Result):
            return shape(vars(value))
        return (type(value), value)

    assert is_plain(state)
    write(tmp_path, 1, state)
    assert shape(latest(tmp_path).state) == shape(state)


@pytest.mark.parametrize(
    "generator",
    [np.random.default_rng(3), random.Random(3), np.random.RandomState(3)],
)
def test_a_random_generator_goes_on_where_it_was_saved(generator, tmp_path):
    draw = generator.random
    draw()
    write(tmp_path, 1, generator)
    assert [latest(tmp_path).state.random() for _ in range(2)] == [draw()] * 2


@pytest.mark.parametrize(
    "value", [object(), print, np.array([None]), {"a": {1: print}}]
)
def test_other_values_are_not_plain(value):
    assert not is_plain(value)


def test_a_value_that_contains_itself_is_not_plain():
    value = []
    value.append(value)
    assert not is_plain(value)


def test_strange_folders_beside_the_checkpoints_stay_and_do_no_harm(tmp_path):
    for name in ("round-", "round-abc", "round-1", "round-00000003.bak", ".round-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "round-00000009").write_text("a file")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    for rounds in (2, 4):
        start(Checkpointed(FedAvg(**SOME), tmp_path), rounds)
    assert latest(tmp_path).number == 4
    after = {path.name for path in tmp_path.iterdir()}
    assert after == before | {"round-00000003", "round-00000004"}
