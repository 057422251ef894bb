"""A silent client costs its grace, not the timeout. The clock is moved by sleep."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.messages.bounded_grid import REFUSED_REPLY
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AttackedStrategy,
    GracePeriod,
    GracePeriodGrid,
    RobustStrategy,
    grace_period,
)

NEVER = float("inf")


class Clock:
    now = 1000.0

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(grace_period, "monotonic", lambda: clock.now)
    monkeypatch.setattr(grace_period, "sleep", clock.sleep)
    return clock


def echo():
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        arrays = ArrayRecord({"w": Array(np.full(3, 1 + 0.01 * client))})
        content = {"arrays": arrays, "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    return app


class Timed(InProcessGrid):
    """Replies that come so many seconds after they were asked for."""

    def __init__(self, clock, seconds):
        super().__init__(echo(), len(seconds))
        self.clock, self.seconds = clock, seconds
        self.due = {}
        self.pulled = []

    def push_messages(self, messages):
        messages = list(messages)
        keys = super().push_messages(messages)
        first = self.get_node_ids()[0]
        for key, message in zip(keys, messages, strict=True):
            wait = self.seconds[message.metadata.dst_node_id - first]
            self.due[key] = self.clock.now + wait
        return keys

    def pull_messages(self, message_ids):
        ready = [key for key in message_ids if self.due[key] <= self.clock.now]
        self.pulled += ready
        return super().pull_messages(ready)


class Foreign(Grid):
    """A Grid of the user's own: neither one of this project nor one of Flower's."""

    def __init__(self, inner):
        self.inner = inner

    run = property(lambda self: self.inner.run)


for name in Grid.__abstractmethods__ - {"run"}:

    def forward(self, *args, _name=name, **kwargs):
        return getattr(self.inner, _name)(*args, **kwargs)

    setattr(Foreign, name, forward)
Foreign.__abstractmethods__ = frozenset()


def ask(grid):
    return [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]


def wait(clock, seconds, f, timeout=3600.0, **settings):
    """Nodes that answered in time, and how long that took."""
    grid = GracePeriodGrid(Timed(clock, seconds), f, GracePeriod(**settings))
    started = clock.now
    replies = grid.send_and_receive(ask(grid), timeout=timeout)
    first = next(iter(grid.get_node_ids()))
    return {r.metadata.src_node_id - first for r in replies}, clock.now - started


def test_when_all_answer_nothing_is_waited_for(clock):
    answered, taken = wait(clock, [1, 2, 3, 4, 5], f=1)
    assert answered == {0, 1, 2, 3, 4} and 5 <= taken <= 5.3


def test_a_silent_node_costs_twice_the_time_of_the_others(clock):
    answered, taken = wait(clock, [20, 20, 20, 20, NEVER], f=1)
    assert answered == {0, 1, 2, 3} and 60 <= taken <= 64


def test_a_slow_node_within_the_grace_counts(clock):
    assert wait(clock, [20, 20, 20, 20, 55], f=1)[0] == {0, 1, 2, 3, 4}


def test_the_grace_is_bounded(clock):
    assert 11 <= wait(clock, [1, 1, 1, 1, NEVER], f=1)[1] <= 11.2
    assert 101 <= wait(clock, [1] * 4 + [NEVER], f=1, at_least=100.0)[1] <= 101.2
    assert 1040 <= wait(clock, [1000] * 4 + [NEVER], f=1, at_most=40.0)[1] <= 1045


def test_more_than_f_silent_nodes_cost_the_timeout(clock):
    answered, taken = wait(clock, [1, 1, 1, NEVER, NEVER], f=1, timeout=300.0)
    assert answered == {0, 1, 2} and taken == pytest.approx(300)


def test_the_timeout_ends_the_grace(clock):
    assert wait(clock, [5, 5, NEVER], f=1, timeout=8.0)[1] == pytest.approx(8)


def test_hasty_liars_leave_the_honest_a_grace(clock):
    """Two of five answer at once: the grace is of the first honest node's time."""
    answered, taken = wait(clock, [0, 0, 30, 31, 80], f=2)
    assert answered == {0, 1, 2, 3, 4} and taken >= 80


def test_a_share_and_no_messages(clock):
    assert wait(clock, [1, 1, 1, 1, NEVER], f=0.2)[1] < 12
    grid = GracePeriodGrid(Timed(clock, [1]), 0)
    assert grid.send_and_receive([]) == []


def test_late_replies_are_never_pulled(clock):
    """Also in the round after, when they are there."""
    inner = Timed(clock, [1, 1, 1, 1, 15])
    grid = GracePeriodGrid(inner, 1)
    for _ in range(3):
        assert len(grid.send_and_receive(ask(grid), timeout=3600)) == 4
    assert len(inner.pulled) == 12


class Mortal(Timed):
    """Nodes that are no longer connected: what is sent to them is lost at once."""

    dead = frozenset()

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.dead]

    def pull_messages(self, message_ids):
        return [
            reply
            for reply in super().pull_messages(message_ids)
            if reply.metadata.src_node_id not in self.dead
        ]


@pytest.mark.parametrize("f", [2, 0.25])
def test_up_to_f_dead_nodes_are_still_asked(clock, f):
    inner = Mortal(clock, [1] * 7)
    grid = GracePeriodGrid(inner, f)
    first, second, third, *others = everyone = grid.get_node_ids()
    for dead in ({second}, {second, third}):
        inner.dead = dead
        assert sorted(grid.get_node_ids()) == everyone
    inner.dead = {first, second, third}
    assert sorted(grid.get_node_ids()) == sorted([second, third, *others])
    inner.dead = frozenset()
    assert grid.get_node_ids() == everyone


def test_a_strategy_that_wants_all_nodes_does_not_wait_for_the_dead(clock):
    inner = Mortal(clock, [1, 1, 1, 1])
    grid = GracePeriodGrid(inner, 1)
    everyone = len(grid.get_node_ids())
    inside = FedAvg(min_train_nodes=everyone, min_available_nodes=everyone)
    inner.dead = {grid.get_node_ids()[0]}
    initial = ArrayRecord({"w": Array(np.zeros(3))})
    messages = list(inside.configure_train(1, initial, ConfigRecord(), grid))
    assert len(messages) == everyone
    assert len(grid.send_and_receive(messages, timeout=100)) == everyone - 1


def test_who_stays_silent_is_waited_for_ever_more_rarely(clock):
    """And again in every round once it answers, however late that is."""
    inner = Timed(clock, [10, 10, 10, 10, NEVER])
    grid = GracePeriodGrid(inner, 1)

    def rounds(number):
        for _ in range(number):
            started = clock.now
            grid.send_and_receive(ask(grid), timeout=3600)
            yield clock.now - started > 15

    waited = [number for number, long in enumerate(rounds(20), start=1) if long]
    assert waited == [1, 2, 4, 8, 16]
    inner.seconds[4] = 25
    assert [len(grid.send_and_receive(ask(grid))) for _ in range(14)] == [4] * 11 + [
        5
    ] * 3


def test_who_is_needed_is_waited_for_in_every_round(clock):
    """Two of five may lie: a round needs all five replies."""
    grid = GracePeriodGrid(Timed(clock, [10, 10, 10, 10, NEVER]), 2)
    for _ in range(5):
        started = clock.now
        grid.send_and_receive(ask(grid), timeout=3600)
        assert clock.now - started > 15


def test_who_is_slow_is_waited_for_beside_who_is_silent(clock):
    inner = Timed(clock, [10] * 5 + [25, NEVER])
    grid = GracePeriodGrid(inner, 2)
    assert [len(grid.send_and_receive(ask(grid))) for _ in range(9)] == [6] * 9
    started = clock.now
    assert len(grid.send_and_receive(ask(grid))) == 6
    assert 25 <= clock.now - started <= 27, "the end of the grace is not waited for"


def test_messages_do_not_outlive_the_round_by_hours(clock):
    grid = GracePeriodGrid(Timed(clock, [1, 1, 1]), 1)
    for timeout, set_to, ttl in [(300, None, 600), (300, 60, 60), (None, None, 43200)]:
        messages = [Message(RecordDict(), 2, "train", ttl=set_to)]
        grid.send_and_receive(messages, timeout=timeout)
        assert messages[0].metadata.ttl == ttl


@pytest.mark.parametrize(
    "wrap", [lambda inner: inner, lambda inner: AttackedStrategy(inner, "alie", 1)]
)
def test_a_run_waits_as_its_strategy_says(clock, wrap):
    strategy = RobustStrategy(
        FedAvg(fraction_evaluate=0.0),
        num_malicious_nodes=1,
        grace_period=GracePeriod(1.0),
    )
    grid = Foreign(Timed(clock, [30, 30, 30, 30, NEVER]))
    started = clock.now
    initial = ArrayRecord({"w": Array(np.zeros(3))})
    result = wrap(strategy).start(grid, initial, num_rounds=2)
    assert 120 <= clock.now - started <= 130
    assert result.train_metrics_clientapp[2]["replies-missing"] == 1


class Undecodable(Timed):
    """The reply of the first node cannot be decoded, and spoils what comes with it."""

    def pull_messages(self, message_ids):
        found = super().pull_messages(message_ids)
        first = self.get_node_ids()[0]
        if any(reply.metadata.src_node_id == first for reply in found):
            json.loads("{")
        return found


def test_undecodable_reply_costs_that_reply_alone(clock):
    grid = GracePeriodGrid(Foreign(Undecodable(clock, [1, 1, 1, 2, 2])), 1)
    for _ in range(2):
        replies = grid.send_and_receive(ask(grid), timeout=100)
        (lost,) = [reply for reply in replies if reply.has_error()]
        assert len(replies) == 5 and lost.error.code == REFUSED_REPLY
        assert lost.metadata.reply_to_message_id not in {
            reply.metadata.reply_to_message_id for reply in replies if reply is not lost
        }


def test_a_connection_that_is_lost_ends_the_run(clock):
    class Broken(Timed):
        def pull_messages(self, message_ids):
            raise ConnectionError("no SuperLink")

    grid = GracePeriodGrid(Broken(clock, [1, 1, 1]), 1)
    with pytest.raises(ConnectionError):
        grid.send_and_receive(ask(grid))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"factor": -1.0}, "factor"),
        ({"at_least": float("nan")}, "at_least"),
        ({"at_least": 5.0, "at_most": 4.0}, "at_most"),
    ],
)
def test_patience_that_makes_no_sense(settings, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should be"):
        GracePeriod(**settings)


def test_patience_is_no_number_of_seconds() -> None:
    with pytest.raises(
        ValueError, match="`grace_period` should be a `GracePeriod`, or None"
    ):
        RobustStrategy(FedAvg(), num_malicious_nodes=1, grace_period=60)
