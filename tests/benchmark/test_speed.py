"""Time rules, relative to one weighted sum over the same matrix.

    pytest -m benchmark tests/benchmark --benchmark-columns=min,median

In the table, the number in parentheses is the ratio to the fastest of the group. That
is the weighted sum `w @ X`, which reads the input once, as every rule must. If the
machine does other work, compare medians.
"""

from functools import cache

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    Bulyan,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
)

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy

pytestmark = pytest.mark.benchmark

SIZES = [(17, 10**6, 4), (100, 10**6, 20)]
RULES = [
    *("mean", "gm", "ctma(gm)", "nnm(ctma(gm))", "nnm(gm)", "krum", "multikrum"),
    *("cwmed", "ctma(cwmed)", "cwtm", "meamed", "mda", "caf", "dnc", "cge", "cclip"),
]
ROUNDS = 9


@cache
def matrix(n: int, d: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)


def timed(benchmark, group: str, call, setup=None) -> None:
    benchmark.group = group
    benchmark.pedantic(call, setup=setup, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize(("n", "d", "f"), SIZES)
def test_pass(benchmark, n, d, f) -> None:
    rows, weights = matrix(n, d), np.full(n, 1 / n, np.float32)
    timed(benchmark, f"rules, n = {n}, d = {d:.0e}, f = {f}", lambda: weights @ rows)


@pytest.mark.parametrize(("n", "d", "f"), SIZES)
@pytest.mark.parametrize("spelled", RULES)
def test_rule(benchmark, spelled, n, d, f) -> None:
    rows, rule = matrix(n, d), parse_aggregator(spelled)
    timed(
        benchmark,
        f"rules, n = {n}, d = {d:.0e}, f = {f}",
        lambda: rule(rows, f=f),
    )


@pytest.mark.parametrize(("n", "d", "f"), SIZES)
@pytest.mark.parametrize("name", ["median", "sort"])
def test_naive_numpy(benchmark, name, n, d, f) -> None:
    rows = matrix(n, d)
    naive = {
        "median": lambda: np.median(rows, axis=0),
        "sort": lambda: np.sort(rows, axis=0)[f : n - f].mean(axis=0),
    }
    timed(benchmark, f"rules, n = {n}, d = {d:.0e}, f = {f}", naive[name])


FLOWER = {
    "FedAvg": lambda f: FedAvg(),
    "FedMedian": lambda f: FedMedian(),
    "FedTrimmedAvg": lambda f: FedTrimmedAvg(beta=0.2),
    "Krum": lambda f: Krum(num_malicious_nodes=f),
    "MultiKrum": lambda f: MultiKrum(num_malicious_nodes=f),
    "Bulyan": lambda f: Bulyan(num_malicious_nodes=min(f, 3)),
    "ctma(gm)": lambda f: RobustStrategy(FedAvg(), "ctma(gm)", num_malicious_nodes=f),
    "ctma(cwmed)": lambda f: RobustStrategy(
        FedAvg(), "ctma(cwmed)", num_malicious_nodes=f
    ),
}


@pytest.mark.parametrize("name", FLOWER)
def test_from_messages_to_model(benchmark, name) -> None:
    """Time Flower's strategies and RobustStrategy on the same replies."""
    n, d, f = SIZES[0]
    prepare = round_of(name, matrix(n, d), f)
    timed(
        benchmark,
        f"from {n} messages of {d:.0e} numbers to the model, f = {f}",
        lambda strategy, replies: strategy.aggregate_train(1, replies),
        lambda: (prepare(), {}),
    )


def round_of(name: str, rows: np.ndarray, f: int):
    """Return a function that makes new replies: some strategies modify theirs."""
    n, d = rows.shape
    grid, strategy = InProcessGrid(ClientApp(), n), FLOWER[name](f)
    inner = strategy.strategy if isinstance(strategy, RobustStrategy) else strategy
    inner.min_available_nodes = inner.min_train_nodes = n
    sent = record(np.zeros(d, np.float32))
    payloads = [record(row) for row in rows]

    def prepare() -> tuple[object, list[Message]]:
        asked = list(strategy.configure_train(1, sent, ConfigRecord(), grid))
        for i, message in enumerate(asked):
            message.metadata.__dict__["_message_id"] = str(i)
        return strategy, [reply(m, p) for m, p in zip(asked, payloads, strict=True)]

    return prepare


def record(row: np.ndarray) -> ArrayRecord:
    return ArrayRecord({"w": Array(row)})


def reply(asked: Message, arrays: ArrayRecord) -> Message:
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
    content["arrays"] = ArrayRecord(dict(arrays.items()))
    return Message(content, reply_to=asked)
