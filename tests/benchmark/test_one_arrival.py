"""Time one asynchronous arrival, and the aggregation of all rows, in CPU seconds.

    FLWR_CTMA_NUM_THREADS=1 pytest -m benchmark tests/benchmark/test_one_arrival.py

CPU time of one thread gives the same ratios on a machine that does other work.
`test_pass` is the lower bound: it reads all rows once.
"""

import time
from functools import cache

import numpy as np
import pytest

from flwr_ctma.aggregators import Budget, parse_aggregator
from flwr_ctma.engine.incremental import IncrementalStack
from flwr_ctma.engine.updates import Updates

pytestmark = [
    pytest.mark.benchmark(timer=time.process_time, group="n = 100, d = 1e6"),
]

N, D, SHARE = 100, 10**6, 0.3


@cache
def latest() -> IncrementalStack:
    rng = np.random.default_rng(0)
    rows = IncrementalStack(N, [np.zeros(D, np.float32)])
    for i in range(N):
        rows.replace(i, [rng.standard_normal(D, dtype=np.float32)])
    return rows


def run(benchmark, call) -> None:
    benchmark.pedantic(call, rounds=9, warmup_rounds=3)


def test_pass(benchmark) -> None:
    rows, weights = latest().layers[0].rows, np.full(N, 1 / N, np.float32)
    run(benchmark, lambda: weights @ rows)


@pytest.mark.parametrize("spelled", ["mean", "gm", "ctma(gm)", "cwmed", "ctma(cwmed)"])
@pytest.mark.parametrize("how", ["arrival", "all"])
def test_rule(benchmark, how, spelled) -> None:
    rule, held = parse_aggregator(spelled), latest()
    counts = np.arange(1.0, N + 1)
    fresh = np.random.default_rng(1).standard_normal((10, D), dtype=np.float32)
    turn = iter(range(10**6))

    def step() -> None:
        if how == "arrival":
            k = next(turn)
            i = (17 * k) % N
            counts[i] += 1
            held.replace(i, [fresh[k % 10]])
            rows = Updates(held)
        else:
            rows = Updates.of(held.layers[0].rows)
        rule.solve(rows, Budget(N, SHARE, counts)).vector(rows.stack)

    run(benchmark, step)
