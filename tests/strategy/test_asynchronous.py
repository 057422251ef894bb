"""Asynchronous training: the algorithm, floods, and nodes that come and go."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.optim.momentum import CorrectedMomentum
from flwr_ctma.simulation.clock import (
    ArrivalGrid,
    Durations,
    FixedDurations,
    Proportional,
)
from flwr_ctma.strategy.anytime import AnyTimeSGD
from flwr_ctma.strategy.asynchronous.robust import AsyncRobustStrategy
from flwr_ctma.strategy.asynchronous.weighting import Staleness, capped

TARGET = np.linspace(-1.0, 1.0, 12)
Corrupt = Callable[[int, np.ndarray], np.ndarray | None]


def honest(partition: int, momentum: np.ndarray) -> np.ndarray:
    return momentum


def app(corrupt: Corrupt = honest, noise: float = 0.1) -> ClientApp:
    """Clients that minimise ‖x − TARGET‖²/2 with noisy gradients and μ²-SGD."""
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message | None:
        point = message.content.array_records["arrays"]["x"].numpy()
        partition = int(context.node_config["partition-id"])
        number = int(message.content.config_records["config"]["server-round"])
        shift = noise * np.random.default_rng([partition, number]).normal(size=12)
        momentum = CorrectedMomentum.read(context.state.array_records.get("momentum"))
        momentum = momentum.at({"x": point}, lambda at: {"x": at["x"] - TARGET + shift})
        context.state["momentum"] = momentum.record()
        sent = corrupt(partition, momentum.vector["x"])
        if sent is None:
            return None
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
        content["arrays"] = arrays(point - sent)
        return Message(content, reply_to=message)

    return client


def arrays(x: np.ndarray) -> ArrayRecord:
    record = ArrayRecord([x])
    return ArrayRecord({"x": record["0"]})


def train(
    corrupt: Corrupt = honest,
    *,
    f: int = 2,
    n: int = 9,
    rounds: int = 30,
    rule: str = "ctma(gm)",
    durations: Durations = Proportional(),  # noqa: B008
    timeout: float = 1e4,
    **settings,
):
    """Run on a virtual clock; give the strategy, the grid, the result and the error."""
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=1)"), rule, num_malicious_nodes=f, **settings
    )
    grid = ArrivalGrid(app(corrupt), n, durations)
    result = strategy.start(grid, arrays(np.zeros(12)), rounds, timeout=timeout)
    error = np.linalg.norm(result.arrays["x"].numpy() - TARGET)
    return strategy, grid, result, error


@pytest.mark.parametrize(
    ("rule", "memory"),
    [
        *[(rule, 0.0) for rule in ("ctma(gm)", "ctma(cwmed)", "gm", "cwmed", "mean")],
        *[(rule, 0.8) for rule in ("ctma(gm)", "ctma(cwmed)", "caf")],
    ],
)
def test_equals_the_algorithm_written_by_hand(rule, memory) -> None:
    """Dahan & Levy, NeurIPS 2024, Algorithm 2, with the cap, from the same arrivals."""
    n, f, steps, eta, share = 5, 1, 60, 0.05, 0.4
    seconds = (1.0, 1.31, 1.73, 2.17, 0.77)
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(eta, "fixed(gamma=0.1)"),
        rule,
        num_malicious_nodes=f,
        max_share=share,
        updates_per_round=steps,
        memory=memory,
    )
    grid = ArrivalGrid(app(), n, FixedDurations(seconds))
    result = strategy.start(grid, arrays(np.zeros(12)), 1)

    x = w = np.zeros(12)
    due = np.array(seconds)
    at, last = [x] * n, [None] * n
    d, counts, asked = np.zeros((n, 12)), np.zeros(n), np.ones(n, int)
    past = np.zeros((n, 12))
    counted = 0
    while counted < steps:
        i = int(np.argmin(due))
        now, due[i] = due[i], np.inf
        noise = 0.1 * np.random.default_rng([i, asked[i]]).normal(size=12)
        gradient = at[i] - TARGET + noise
        if last[i] is not None:
            gradient = gradient + 0.75 * (d[i] - (last[i] - TARGET + noise))
        d[i], last[i] = gradient, at[i]
        counts[i] += 1
        past[i] = memory * past[i] + (1 - memory) * d[i]
        counted += 1
        enough = f <= share * (counts > 0).sum()
        if enough:
            weights = _cut(counts, share)
            held = np.sort(weights)[::-1][:f].sum() / weights.sum()
            if memory:
                mean = _beside_its_past(rule, d, past, counts, memory, held, weights)
            else:
                mean = parse_aggregator(rule)(d, f=float(held), weights=weights)
            w = w - eta * mean
            x = x + 0.1 * (w - x)
        below = counts <= _cut(counts, share) + 1e-9 if enough else counts == 0
        for j in np.flatnonzero(np.isinf(due) & below):  # who is above the cap waits
            at[j] = x
            asked[j] += 1
            due[j] = now + seconds[j]
    np.testing.assert_allclose(result.arrays["x"].numpy(), x, atol=1e-8)


def _beside_its_past(rule, d, past, counts, beta, held, weights):
    """The clipped mean of the rows, weighed beside their averages."""
    remembered = past / np.maximum(1 - beta**counts, 1e-9)[:, None]
    k = np.median(counts[counts > 0])
    noise = (1 - beta) / (1 + beta) * (1 + beta**k) / (1 - beta**k)
    judged = np.hstack([remembered, noise**0.5 * d])
    c = parse_aggregator(rule).weigh(judged, float(held), weights)
    norms = np.linalg.norm(d, axis=1)
    limit = 2 * np.median(norms[np.abs(c) > 1e-9])
    return (c * np.minimum(1, limit / np.maximum(norms, 1e-300))) @ d


def _cut(counts: np.ndarray, share: float) -> np.ndarray:
    """The largest c at which one client has no more than the share, by bisection."""
    if counts.max() <= share * counts.sum():
        return counts
    low, high = 0.0, counts.max()
    for _ in range(100):
        middle = (low + high) / 2
        held = middle <= share * np.minimum(counts, middle).sum()
        low, high = (middle, high) if held else (low, middle)
    return np.minimum(counts, low)


def flipped(*liars: int) -> Corrupt:
    return lambda partition, m: -10 * m if partition in liars else m


def test_a_flood_does_not_take_over() -> None:
    """One liar that answers 100 times as fast as all others stays below its share."""
    rates = (100.0,) + (1.0,) * 8
    strategy, _, result, error = train(
        flipped(0),
        f=1,
        durations=Proportional(rates=rates),
        updates_per_round=300,
        rounds=6,
    )
    shares = [m["largest-share"] for m in result.train_metrics_clientapp.values()]
    assert max(shares) <= (1 / 9 + 0.5) / 2 + 1e-12
    assert error < 0.5
    counts = {c.row: c.count for c in strategy.clients.clients.values()}
    assert counts[0] <= 0.31 * sum(counts.values())
    flood = strategy.clients.clients[2]
    assert flood.delivered == flood.count, "a node above its cap waits"


def test_without_the_cap_the_same_flood_takes_over() -> None:
    rates = (100.0,) + (1.0,) * 8
    settings = {"durations": Proportional(rates=rates), "updates_per_round": 100}
    with pytest.raises(ValueError, match="finite, and of a norm below 1e18"):
        train(flipped(0), f=0, rounds=2, **settings)


@pytest.mark.parametrize("rule", ["ctma(gm)", "ctma(cwmed)", "cwmed", "gm"])
@pytest.mark.parametrize("durations", [Proportional(1), Proportional(2)])
def test_learns_while_two_of_nine_lie(rule, durations) -> None:
    *_, error = train(flipped(7, 8), rule=rule, durations=durations, rounds=40)
    assert error < 0.5


def test_updates_of_fedavg_clients_weighted_by_staleness() -> None:
    *_, error = train(flipped(0), client_weighting=Staleness(), rounds=60)
    assert error < 0.5


def silent(*nodes: int) -> Corrupt:
    return lambda partition, m: None if partition in nodes else m


def raising(partition: int, momentum: np.ndarray) -> np.ndarray:
    if partition == 3:
        raise RuntimeError("broken")
    return momentum


def not_finite(partition: int, momentum: np.ndarray) -> np.ndarray:
    return momentum * np.nan if partition == 3 else momentum


@pytest.mark.parametrize("corrupt", [silent(0, 8), raising, not_finite])
def test_nodes_that_fail_stall_nobody(corrupt) -> None:
    _, _, result, error = train(corrupt)
    assert error < 0.3
    rounds = list(result.train_metrics_clientapp.values())
    assert all(report["steps"] > 0 for report in rounds[5:])


def test_run_without_a_step_fails_and_says_why(caplog) -> None:
    """Two of the four nodes that answer could hold half of the weight."""
    with pytest.raises(RuntimeError, match="without a step: 4 of 5 nodes have deliv"):
        train(silent(0), n=5, rounds=2, timeout=30)
    assert "No step in round 2: 4 of 5 nodes have delivered, 2 of them" in caplog.text
    assert "Waiting: 4 of 5 nodes have delivered" in caplog.text


def test_rejections_are_reported_with_the_node() -> None:
    strategy, grid, result, _ = train(not_finite, rounds=3)
    liar = grid.get_node_ids()[3]
    reported = [m["nodes-rejected"] for m in result.train_metrics_clientapp.values()]
    assert reported.count([liar]) >= 2 and all(set(r) <= {liar} for r in reported)
    assert strategy.ledger[liar].rejected["not-finite"] == reported.count([liar])


class Changing(ArrivalGrid):
    """Nodes 0 to 4 at first; 5 to 8 from 20 s on; 0 to 2 are gone from 40 to 60 s."""

    def get_node_ids(self) -> list[int]:
        nodes = super().get_node_ids()
        if self.now < 20:
            return nodes[:5]
        return nodes[3:] if 40 < self.now < 60 else nodes


def test_nodes_come_go_and_return() -> None:
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=1)"), num_malicious_nodes=1, max_seconds=100
    )
    grid = Changing(app(flipped(8)), 9, FixedDurations((1.0,) * 9))
    result = strategy.start(grid, arrays(np.zeros(12)), 10_000)
    assert np.linalg.norm(result.arrays["x"].numpy() - TARGET) < 0.3
    assert len(strategy.clients.clients) == 9
    assert all(client.delivered > 20 for client in strategy.clients.clients.values())
    assert 100 <= grid.now < 110


class Emptied(ArrivalGrid):
    """Nodes 0 to 4 at first; from 20 s on one of them is left, and 5 is new."""

    def get_node_ids(self) -> list[int]:
        nodes = super().get_node_ids()
        return nodes[:5] if self.now < 20 else nodes[4:]


def test_a_node_that_is_new_where_no_step_may_be_taken_any_more() -> None:
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=1)"), num_malicious_nodes=1, updates_per_round=120
    )
    grid = Emptied(app(), 6, FixedDurations((1.0,) * 6))
    result = strategy.start(grid, arrays(np.zeros(12)), 1)
    report = result.train_metrics_clientapp[1]
    new = grid.get_node_ids()[-1]
    assert strategy.clients.clients[new].delivered > 1
    assert report["steps"] > 50 and new not in report["nodes-trimmed"]


class Reregistering(ArrivalGrid):
    """Seven nodes at a time; the first registers anew after every second."""

    def get_node_ids(self) -> list[int]:
        nodes = super().get_node_ids()
        return [nodes[6 + int(self.now) % (len(nodes) - 6)], *nodes[:6]]


def test_node_that_registers_anew_leaves_no_rows_and_no_claims() -> None:
    """There are never more rows than nodes at the same time."""
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=1)"), num_malicious_nodes=1
    )

    def lie(partition: int, momentum: np.ndarray) -> np.ndarray:
        return momentum + 100 if partition >= 6 else momentum

    grid = Reregistering(app(lie), 66, FixedDurations((1.0,) * 6 + (0.6,) * 60))
    result = strategy.start(grid, arrays(np.zeros(12)), 20, timeout=100)
    clients = strategy.clients
    assert len(clients.clients) <= 7 and clients.latest["rows"].n <= 7
    assert len(clients.claims()) <= 7
    assert len(strategy._pending._messages) <= 7
    assert np.linalg.norm(result.arrays["x"].numpy() - TARGET) < 1


def test_claims_of_nodes_that_left_do_not_count() -> None:
    strategy = AsyncRobustStrategy(AnyTimeSGD(0.1), num_malicious_nodes=0)
    clients = strategy.clients
    for node, loss in ((2, 1.0), (3, 1.0), (4, 50.0)):
        clients.ask(node)
        clients.clients[node].metrics = MetricRecord({"loss": loss})
    clients.set_present({2, 3, 4})
    assert len(clients.claims()) == 3
    assert clients.set_present({2, 3}) == set()
    assert [claim["loss"] for claim in clients.claims()] == [1.0, 1.0]
    assert clients.set_present({2, 3, 9}) == {4}


def test_same_seed_same_bits() -> None:
    first, second = (train(flipped(0))[2].arrays["x"].data for _ in range(2))
    assert first == second


def test_a_straggler_does_not_hold_up_the_others() -> None:
    """Ten times slower: in the time of ten of its answers, all others answer 100."""
    seconds = (10.0,) + (1.0,) * 8
    strategy, grid, *_ = train(
        durations=FixedDurations(seconds), max_seconds=100, rounds=9999
    )
    counts = sorted(client.delivered for client in strategy.clients.clients.values())
    assert counts[0] == 10 and counts[1] >= 99 and grid.now < 111


counts = st.lists(st.integers(0, 10**6), min_size=1, max_size=20)


@given(counts, st.integers(0, 6), st.floats(0.01, 0.49))
def test_the_cap_holds_and_is_the_largest(counts, f, share) -> None:
    weights = np.array(counts, float)
    cut = capped(weights, f, share)
    if cut is None:
        assert not weights.any() or f > share * np.count_nonzero(weights)
        return
    heaviest = np.sort(cut)[::-1][:f].sum()
    assert heaviest <= share * cut.sum() * (1 + 1e-9)
    if f and (cut < weights).any():
        higher = np.minimum(weights, cut.max() * (1 + 1e-6))
        assert np.sort(higher)[::-1][:f].sum() > share * higher.sum()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_malicious_nodes": -1}, "num_malicious_nodes"),
        ({"num_malicious_nodes": 0.5}, "num_malicious_nodes"),
        ({"num_malicious_nodes": True}, "num_malicious_nodes"),
        ({"num_malicious_nodes": 0.3, "max_share": 0.4}, "max_share"),
        ({"max_share": 0.5}, "max_share"),
        ({"updates_per_round": 0}, "updates_per_round"),
        ({"updates_per_round": 2.5}, "updates_per_round"),
        ({"aggregator": "krum"}, "aggregator"),
        ({"client_weighting": "alike"}, "client-weighting"),
        ({"client_weighting": 3}, "client_weighting"),
        ({"client_weighting": "staleness(power=-1)"}, "client-weighting"),
        ({"max_share": "0.4"}, "max_share"),
        ({"max_share": False}, "max_share"),
        ({"max_share": 0.5}, "max_share"),
        ({"max_share": -0.1}, "max_share"),
        ({"max_share": 0.4, "num_malicious_nodes": 0.2}, "max_share"),
        ({"max_seconds": 0.0}, "max_seconds"),
        ({"max_seconds": "60"}, "max_seconds"),
        ({"max_seconds": float("nan")}, "max_seconds"),
        ({"min_available_nodes": "2"}, "min_available_nodes"),
        ({"reply_limit": 5}, "reply_limit"),
    ],
)
def test_wrong_settings_are_named(settings, named) -> None:
    with pytest.raises(ValueError, match=f"`{named}`"):
        AsyncRobustStrategy(AnyTimeSGD(0.1), **{"num_malicious_nodes": 1, **settings})


@pytest.mark.parametrize("share", [None, 0, 0.4, np.float32(0.25)])
def test_share_below_half_is_taken(share) -> None:
    settings = {"num_malicious_nodes": 1, "max_share": share}
    assert AsyncRobustStrategy(AnyTimeSGD(0.1), **settings).clients.max_share == share
