"""Rules that look at each array of the model on its own, in the strategies."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.messages import schema
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    Checkpointed,
    OnDiskGrid,
    RobustStrategy,
)
from flwr_ctma.tracking.checkpoint import latest
from tests.helpers import oracles as o

N, F, WIDTHS = 9, 2, (6, 30)
START = ArrayRecord(
    {
        "w": Array(np.linspace(-1, 1, 6).reshape(2, 3)),
        "bn.running_mean": Array(np.zeros(2)),
        "v": Array(np.linspace(0, 1, 30)),
    }
)


def update(partition):
    """Client 0 lies in the first array, client 1 in the second."""
    u = np.random.default_rng(partition).normal(0.3, 1.0, 36)
    if partition == 0:
        u[:6] = -9 * abs(u[:6])
    if partition == 1:
        u[6:] = -9 * abs(u[6:])
    return u


app = ClientApp()


@app.train()
def train(message, context):
    sent = message.content["arrays"]
    u = update(int(context.node_config["partition-id"]))
    arrays = ArrayRecord(
        {
            "w": Array(sent["w"].numpy() + u[:6].reshape(2, 3)),
            "bn.running_mean": sent["bn.running_mean"],
            "v": Array(sent["v"].numpy() + u[6:]),
        }
    )
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, reply_to=message)


def flat(arrays):
    return np.concatenate([arrays[key].numpy().ravel() for key in ("w", "v")])


def run(rule, disk=None, **settings):
    inside = FedAvg(fraction_evaluate=0.0, min_available_nodes=N)
    strategy = RobustStrategy(inside, rule, num_malicious_nodes=F, **settings)
    grid = InProcessGrid(app, N)
    if disk:
        grid = OnDiskGrid(grid, F, disk)
    return flat(strategy.start(grid, START, num_rounds=1).arrays) - flat(START)


def lasa(x):
    return o.lasa(x, F, widths=WIDTHS)


def krum(x):
    return np.concatenate([o.krum(part, F) for part in np.split(x, [6], axis=1)])


@pytest.mark.parametrize(
    ("rule", "oracle"), [("lasa", lasa), ("layerwise(krum)", krum)]
)
def test_layers_are_the_arrays_of_the_model(rule, oracle, tmp_path):
    x = np.array([update(i) for i in range(N)])
    found = run(rule)
    np.testing.assert_allclose(found, oracle(x), atol=1e-9)
    np.testing.assert_array_equal(run(rule, disk=tmp_path), found)


def test_lasa_is_refused_where_replies_have_weights():
    settings = {"num_malicious_nodes": F}
    inside, refusal = FedAvg(), "`aggregator` should be a rule of weighted rows"
    with pytest.raises(ValueError, match=refusal):
        RobustStrategy(inside, "lasa", weighted_by_key="num-examples", **settings)
    with pytest.raises(ValueError, match=refusal):
        AsyncRobustStrategy(AnyTimeSGD(0.1), "lasa", **settings)
    with pytest.raises(ValueError, match=r"Found `aggregator = 'layerwise\(krum\)'`"):
        AsyncRobustStrategy(AnyTimeSGD(0.1), "layerwise(krum)", **settings)


def test_layerwise_rule_runs_asynchronously():
    """A rule that works by coordinate is the same in each layer."""

    def model(rule):
        strategy = AsyncRobustStrategy(AnyTimeSGD(0.1), rule, num_malicious_nodes=F)
        result = strategy.start(InProcessGrid(app, N), START, num_rounds=2)
        return flat(result.arrays)

    found = model("layerwise(cwtm)")
    assert (found != flat(START)).any()
    np.testing.assert_allclose(found, model("cwtm"), atol=1e-9)


def resumable(folder, strategy, rounds):
    strategy = Checkpointed(strategy, folder)
    strategy.start(InProcessGrid(app, N), START, num_rounds=rounds)


def robust(rule, **settings):
    inside = FedAvg(fraction_evaluate=0.0, min_available_nodes=N)
    return RobustStrategy(inside, rule, num_malicious_nodes=F, **settings)


def asynchronous(rule, **settings):
    return AsyncRobustStrategy(AnyTimeSGD(0.1), rule, num_malicious_nodes=F, **settings)


@pytest.mark.parametrize("kind", [robust, asynchronous])
@pytest.mark.parametrize(
    ("rule", "settings"), [("cclip", {}), ("cwtm", {}), ("caf", {"memory": 0.9})]
)
def test_run_with_other_layers_is_refused_or_has_no_rows(
    tmp_path, monkeypatch, kind, rule, settings
):
    """The layers of a small model were its arrays, in releases before."""
    with monkeypatch.context() as before:
        before.setattr(schema, "_SMALL", -1)
        resumable(tmp_path, kind(rule, **settings), rounds=2)
    if kind is robust and rule == "cwtm":  # a rule that needs nothing of before
        resumable(tmp_path, kind(rule, **settings), rounds=4)
        return
    with pytest.raises(
        ValueError, match=r"layers of \[36\] numbers. Found .*\[6, 30\]"
    ):
        resumable(tmp_path, kind(rule, **settings), rounds=4)


def test_the_row_that_cclip_starts_from_is_none_of_another_rule(tmp_path):
    """Its layers are others here, and it would be one row more."""
    resumable(tmp_path, robust("cclip"), rounds=2)
    resumable(tmp_path, robust("layerwise(cwmed)"), rounds=4)
    robustly, _ = latest(tmp_path).state["strategies"]
    assert robustly["state"]["previous"] is None
