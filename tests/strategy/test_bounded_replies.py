"""Replies that the server refuses, and arrays that no client trains."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg

from flwr_ctma.messages.bounded_grid import REFUSED_REPLY, BoundedGrid
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.simulation.clock import ArrivalGrid, Proportional
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    Checkpointed,
    RobustStrategy,
)
from flwr_ctma.strategy.grace_period import GracePeriod, GracePeriodGrid
from flwr_ctma.strategy.round.inner import without_rounding

MASK = np.array([0.0, -np.inf, np.finfo(np.float32).min], np.float32)
START = ArrayRecord({"w": Array(np.zeros(3, np.float32)), "attn.mask": Array(MASK)})
app = ClientApp()


@app.train()
def train(message, context):
    arrays = message.content["arrays"].copy()
    arrays["w"] = Array(arrays["w"].numpy() + np.float32(1))
    if int(context.node_config["partition-id"]) == 0:
        arrays["attn.mask"] = Array(np.full(3, np.nan, np.float32))
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, reply_to=message)


class Refusing(InProcessGrid):
    """Reply to some nodes' messages as a `BoundedGrid` does for a bad reply."""

    def pull_messages(self, message_ids):
        return [
            Message(Error(REFUSED_REPLY, "too large"), reply_to=self.asked[key])
            if self.asked[key].metadata.dst_node_id < 4
            else reply
            for reply in super().pull_messages(message_ids)
            for key in [reply.metadata.reply_to_message_id]
        ]

    def push_messages(self, messages):
        messages = list(messages)
        keys = super().push_messages(messages)
        self.asked = dict(zip(keys, messages, strict=True))
        return keys


@pytest.mark.parametrize("grace_period", [GracePeriod(), None])
def test_a_refused_reply_is_a_proof_and_lowers_f(grace_period):
    """Three of five replies outvote two liars only if the other two are proofs."""
    strategy = RobustStrategy(
        FedAvg(fraction_evaluate=0.0, min_available_nodes=5),
        num_malicious_nodes=2,
        grace_period=grace_period,
        constant_keys=["mask"],
    )
    result = strategy.start(Refusing(app, 5), START, num_rounds=1)
    assert set(result.train_metrics_clientapp[1]["nodes-rejected"]) == {2, 3}
    assert strategy.ledger[2].rejected == {"undecodable": 1}
    assert result.arrays["w"].numpy().tolist() == [1.0] * 3


class Foreign(Grid):
    """A Grid of another package."""

    def __init__(self, inner):
        self.inner = inner


for _name in Grid.__abstractmethods__:

    def forward(self, *args, _name=_name, **kwargs):
        return getattr(self.inner, _name)(*args, **kwargs)

    setattr(
        Foreign, _name, property(lambda s: s.inner.run) if _name == "run" else forward
    )
Foreign.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("grace_period", "kind"), [(None, BoundedGrid), (GracePeriod(), GracePeriodGrid)]
)
def test_replies_are_bounded_with_a_grace_period_and_without(grace_period, kind):
    limit = ReplyLimit(factor=2.0)
    strategy = RobustStrategy(
        FedAvg(), num_malicious_nodes=1, grace_period=grace_period, reply_limit=limit
    )
    grid = strategy.prepare_grid(Foreign(InProcessGrid(app, 5)), 1)
    assert type(grid) is kind
    assert grid.reply_limit == limit


class Counting(FedAvg):
    """A strategy of a user's own, which sees a reply for each accepted one."""

    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, list(replies))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("kind", [FedAvg, FedAdam, Counting, AnyTimeSGD])
def test_constants_stay_as_they_were_sent_whatever_replies_hold(kind):
    settings = {"eta": 1.0} if kind is AnyTimeSGD else {}
    inside = kind(fraction_evaluate=0.0, **settings)
    strategy = RobustStrategy(inside, num_malicious_nodes=1, constant_keys=["mask"])
    result = strategy.start(InProcessGrid(app, 5), START, num_rounds=2)
    np.testing.assert_array_equal(result.arrays["attn.mask"].numpy(), MASK)
    w = result.arrays["w"].numpy()
    assert np.isfinite(w).all() and (w > 0).all()
    assert result.train_metrics_clientapp[2]["replies-accepted"] == 5


def test_constants_stay_in_asynchronous_training():
    """The norm of a projection does not count them."""
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.2, "fixed(gamma=1)", radius=1e3),
        num_malicious_nodes=1,
        constant_keys=["mask"],
        min_available_nodes=5,
    )
    result = strategy.start(InProcessGrid(app, 5), START, num_rounds=2)
    np.testing.assert_array_equal(result.arrays["attn.mask"].numpy(), MASK)
    w = result.arrays["w"].numpy()
    assert np.isfinite(w).all() and (w > 0.1).all()


def test_resumed_asynchronous_run_knows_its_constants(tmp_path):
    """Messages on their way, which the checkpoint holds, have the constants too."""

    def go(rounds, folder):
        strategy = AsyncRobustStrategy(
            AnyTimeSGD(0.2, "fixed(gamma=1)"),
            num_malicious_nodes=1,
            constant_keys=["mask"],
            min_available_nodes=5,
        )
        outer = Checkpointed(strategy, tmp_path / folder)
        grid = ArrivalGrid(app, 5, Proportional())
        return outer.start(grid, START, num_rounds=rounds).arrays

    go(2, "a")
    assert go(4, "a") == go(4, "b")


def test_infinite_constants_are_no_difference_between_equal_models():
    averaged = ArrayRecord({key: Array(a.numpy()) for key, a in START.items()})
    assert without_rounding(START, averaged, n=3) is START
