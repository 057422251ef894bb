"""A server with data of its own: its update is the row that rules trust."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import Aggregator
from flwr_ctma.aggregators.base import Combination
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import AsyncRobustStrategy, Checkpointed, RobustStrategy
from flwr_ctma.strategy.anytime import AnyTimeSGD
from tests.strategy.test_memory import START, WIDTH, app, flat, update

N, F = 7, 2


def own(server_round):
    """The server's own update of a round, without the running statistics."""
    rng = np.random.default_rng([99, server_round])
    return rng.normal(0.2, 0.1, WIDTH + 2)


def server_update(server_round, arrays):
    u = own(server_round)
    return ArrayRecord(
        {
            "w": Array(arrays["w"].numpy() + u[:WIDTH].astype(np.float32)),
            "b": Array(arrays["b"].numpy() + u[None, WIDTH:]),
            "bn.running_mean": arrays["bn.running_mean"],
        }
    )


def run(rule, train=server_update, rounds=3, folder=None, **settings):
    inside = FedAvg(fraction_evaluate=0.0, min_available_nodes=N)
    strategy = RobustStrategy(
        inside, rule, num_malicious_nodes=F, server_update=train, **settings
    )
    outer = Checkpointed(strategy, folder) if folder else strategy
    return outer.start(InProcessGrid(app, N), START, num_rounds=rounds)


@pytest.mark.parametrize(
    "rule", ["fltrust", "monna", "nnm(monna)", "zeno(cwmed)", "ctma(fltrust)"]
)
def test_the_model_is_the_rule_s_with_the_servers_update_as_reference(rule):
    model = flat(START).astype(np.float64)
    for t in range(1, 4):
        x = np.array([update(i, t) for i in range(N)])
        model += parse_aggregator(rule)(x, f=F, reference=own(t))
    found = flat(run(rule).arrays)
    np.testing.assert_allclose(found, model, atol=2e-6)


def test_a_rule_that_remembers_still_trusts_the_server():
    strategy = run("zeno(nnm(gm))", memory=0.9)
    assert np.isfinite(flat(strategy.arrays)).all()


def test_resumed_run_has_the_same_bits(tmp_path):
    run("fltrust", rounds=2, folder=tmp_path)
    resumed = run("fltrust", rounds=4, folder=tmp_path)
    assert (flat(resumed.arrays) == flat(run("fltrust", rounds=4).arrays)).all()


def test_it_is_called_once_for_each_round_with_enough_replies():
    calls = []

    def count(server_round, arrays):
        calls.append(server_round)
        return server_update(server_round, arrays)

    run("monna", count)
    assert calls == [1, 2, 3]


def test_round_in_which_the_server_diverges_is_skipped():
    def diverge(server_round, arrays):
        trained = server_update(server_round, arrays)
        if server_round == 2:
            trained["w"] = Array(np.full(WIDTH, np.nan, np.float32))
        return trained

    metrics = run("fltrust", diverge).train_metrics_clientapp
    assert ["nodes-trimmed" in metrics[t] for t in (1, 2, 3)] == [True, False, True]


def without_key(server_round, arrays):
    return ArrayRecord({"w": arrays["w"]})


def of_other_shape(server_round, arrays):
    return ArrayRecord({**arrays, "w": Array(np.zeros(3, np.float32))})


def of_other_type(server_round, arrays):
    return MetricRecord({"loss": 1.0})


@pytest.mark.parametrize(
    ("train", "shown"),
    [
        (without_key, "keys: 2 missing"),
        (of_other_shape, "shape: 'w'"),
        (of_other_type, "MetricRecord"),
    ],
)
def test_result_of_another_form_ends_the_run_with_a_sentence(train, shown):
    with pytest.raises(ValueError, match="Parameter `server_update` should be") as info:
        run("fltrust", train)
    assert shown in str(info.value)


def test_exception_ends_the_run_with_its_round():
    def fail(server_round, arrays):
        raise KeyError("data")

    with pytest.raises(RuntimeError, match="`server_update` failed in round 1: KeyErr"):
        run("fltrust", fail)


@pytest.mark.parametrize("rule", ["ctma(gm)", "cclip", "zeno(cclip)"])
def test_server_update_for_a_rule_that_does_not_use_it_is_refused(rule):
    with pytest.raises(ValueError, match="beside `server_update`"):
        run(rule)


@dataclass(frozen=True)
class Follow(Aggregator):
    """A rule of an app's own: its reference, or else the mean."""

    needs_reference: ClassVar[bool] = True

    def _point(self, rows, budget):
        if rows.reference is None:
            return Combination(np.full(rows.n, 1 / rows.n))
        return Combination(np.eye(rows.stack.n)[rows.reference])


@pytest.mark.parametrize("train", [server_update, None])
def test_a_rule_of_an_apps_own_gets_the_reference(train):
    first = np.mean([update(i, 1) for i in range(N)], axis=0)
    updates = [own(t) if train else first for t in range(1, 4)]
    found = flat(run(Follow(), train).arrays)
    np.testing.assert_allclose(found, flat(START) + sum(updates), atol=2e-6)


def test_server_update_that_is_no_function_is_refused():
    with pytest.raises(ValueError, match="Parameter `server_update` should be"):
        run("fltrust", train=3)


def test_asynchronous_strategy_refuses_rules_with_a_trusted_row():
    with pytest.raises(ValueError, match="`server_update`"):
        AsyncRobustStrategy(AnyTimeSGD(0.1), "fltrust", num_malicious_nodes=1)
