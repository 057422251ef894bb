"""Memory: nodes are judged by their past, and counted by their present."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from flwr_ctma.aggregators import Budget, Krum, parse_aggregator
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import Audited, Checkpointed, RobustStrategy
from flwr_ctma.strategy.replay import replay
from flwr_ctma.strategy.round.memory import (
    NodeMemory,
    clip_factors,
    solve_remembered,
    weigh_nodes,
)
from flwr_ctma.tracking.audit import read_trail

WIDTH = 6
START = ArrayRecord(
    {
        "w": Array(np.linspace(-1, 1, WIDTH, dtype=np.float32)),
        "b": Array(np.ones((1, 2), np.float64)),
        "bn.running_mean": Array(np.zeros(2, np.float32)),
    }
)


def update(partition, server_round):
    """The update of a client in a round; partition 0 lies a little in each of them."""
    rng = np.random.default_rng([partition, server_round])
    return rng.normal(-0.3 if partition == 0 else 0.2, 0.3, WIDTH + 2)


app = ClientApp()


@app.train()
def train(message, context):
    i = int(context.node_config["partition-id"])
    u = update(i, message.content["config"]["server-round"])
    sent = message.content["arrays"]
    arrays = ArrayRecord(
        {
            "w": Array(sent["w"].numpy() + u[:WIDTH].astype(np.float32)),
            "b": Array(sent["b"].numpy() + u[None, WIDTH:]),
            "bn.running_mean": Array(np.full(2, i + 1, np.float32)),
        }
    )
    metrics = MetricRecord({"num-examples": i + 1})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, reply_to=message)


def run(rule="nnm(gm)", rounds=4, n=7, f=2, inside=None, folder=None, **settings):
    settings = {"memory": 0.9, **settings}
    inside = inside or FedAvg(fraction_evaluate=0.0, min_available_nodes=n)
    strategy = RobustStrategy(inside, rule, num_malicious_nodes=f, **settings)
    outer = Checkpointed(strategy, folder) if folder else strategy
    result = outer.start(InProcessGrid(app, n), START, num_rounds=rounds)
    return strategy, result.arrays


def flat(arrays):
    return np.concatenate([arrays[key].numpy().ravel() for key in ("w", "b")])


def oracle(rule, rounds, n, f, beta, weights=None, asked=None):
    """Return the model after some rounds, by loops over the definition."""
    model = flat(START).astype(np.float64)
    m, k = np.zeros((n, WIDTH + 2)), np.zeros(n)
    for t in range(1, rounds + 1):
        who = list(range(n)) if asked is None else asked[t - 1]
        u = {i: update(i, t) for i in who}
        for i in who:
            m[i] = beta * m[i] + (1 - beta) * u[i]
            k[i] += 1
        remembered = np.array([m[i] / (1 - beta ** k[i]) for i in who])
        j = np.median([k[i] for i in who])
        noise = (1 - beta) / (1 + beta) * (1 + beta**j) / (1 - beta**j)
        now = noise**0.5 * np.array([u[i] for i in who])
        c = parse_aggregator(rule).weigh(np.hstack([remembered, now]), f, weights)
        norms = np.array([np.linalg.norm(u[i]) for i in who])
        limit = 2 * np.median(norms[np.abs(c) > 1e-9])
        for share, norm, i in zip(c, norms, who, strict=True):
            model = model + share * min(1, limit / norm) * u[i]
    return model


@pytest.mark.parametrize("rule", ["caf", "nnm(gm)", "ctma(cwmed)", "krum"])
def test_the_model_follows_the_definition(rule):
    _, arrays = run(rule, rounds=4)
    expected = oracle(rule, 4, 7, 2, 0.9)
    np.testing.assert_allclose(flat(arrays), expected, rtol=1e-4, atol=1e-5)
    without = flat(run(rule, rounds=4, memory=0.0)[1])
    assert np.abs(without - expected).max() > 1e-3


def test_claimed_weights_count():
    """Claims are cut to the third largest, and three of seven hold less than half."""
    _, arrays = run("gm", f=1, weighted_by_key="num-examples")
    claims = np.array([1, 2, 3, 4, 5, 6, 6.0])
    share = 6 / claims.sum()
    expected = oracle("gm", 4, 7, share, 0.9, claims)
    np.testing.assert_allclose(flat(arrays), expected, rtol=1e-4, atol=1e-5)


def test_a_node_that_is_not_asked_keeps_its_memory():
    asked = [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [0, 1, 2, 5, 6], [0, 2, 4, 5, 6]]

    class Some(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            nodes = {i + 2 for i in asked[server_round - 1]}
            return [m for m in messages if m.metadata.dst_node_id in nodes]

    strategy, arrays = run("nnm(gm)", inside=Some(fraction_evaluate=0.0), f=1)
    expected = oracle("nnm(gm)", 4, 7, 1, 0.9, asked=asked)
    np.testing.assert_allclose(flat(arrays), expected, rtol=1e-4, atol=1e-5)
    counts = strategy.state_dict()["memory"]["counts"]
    assert counts == {2: 3, 3: 2, 4: 4, 5: 2, 6: 3, 7: 3, 8: 3}


def test_buffers_and_dtypes_are_as_without_memory():
    with_memory, without = run()[1], run(memory=0.0)[1]
    for key in START:
        assert with_memory[key].dtype == without[key].dtype == START[key].dtype
    name = "bn.running_mean"
    found, expected = with_memory[name].numpy(), without[name].numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rule", ["caf", "cclip"])
def test_a_resumed_run_has_the_same_bits(tmp_path, rule):
    def inside():
        return FedAdam(fraction_evaluate=0.0, min_available_nodes=7)

    _, whole = run(rule, rounds=4, inside=inside(), folder=tmp_path / "a")
    run(rule, rounds=2, inside=inside(), folder=tmp_path / "b")
    _, resumed = run(rule, rounds=4, inside=inside(), folder=tmp_path / "b")
    assert resumed == whole


def test_an_audited_run_is_recomputed_to_the_bit(tmp_path):
    """The strategy is built from the trail alone, with its memory."""
    inside = FedAvg(fraction_evaluate=0.0, min_available_nodes=7)
    robust = RobustStrategy(inside, "caf", num_malicious_nodes=2, memory=0.9)
    file, key = tmp_path / "trail.jsonl", Ed25519PrivateKey.generate()
    audited = Audited(robust, file, key, keep_replies=True)
    audited.start(InProcessGrid(app, 7), START, num_rounds=4)
    assert replay(file, read_trail(file)) == 4


def test_nodes_that_have_left_are_forgotten():
    class Leaving(InProcessGrid):
        rounds = 0

        def push_messages(self, messages):
            self.rounds += 1
            return super().push_messages(messages)

        def get_node_ids(self):
            return super().get_node_ids()[: 7 if self.rounds < 2 else 6]

    inside = FedAvg(fraction_evaluate=0.0)
    strategy = RobustStrategy(inside, "caf", num_malicious_nodes=2, memory=0.9)
    strategy.start(Leaving(app, 7), START, num_rounds=3)
    assert set(strategy.state_dict()["memory"]["counts"].values()) == {3}
    assert len(strategy.state_dict()["memory"]["counts"]) == 6


def test_what_is_remembered_is_an_average_of_the_past():
    """Oracle: Σ β^(k−j) u_j over Σ β^(k−j)."""
    rng, beta = np.random.default_rng(0), 0.8
    memory, past = NodeMemory(beta), {1: [], 2: [], 3: []}
    for nodes in ([1, 2], [2, 3], [3, 1, 2], [2]):
        origin = rng.normal(size=5)
        updates = rng.normal(size=(len(nodes), 5))
        layer = Layer(list(updates + origin), origin)
        found = memory.remember(nodes, Updates.of([layer]))
        for i, node in enumerate(nodes):
            past[node].append(updates[i])
            fading = beta ** np.arange(len(past[node]))[::-1]
            expected = fading @ np.array(past[node]) / fading.sum()
            row = found.combine(np.eye(len(nodes))[i])[0]
            np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_the_clip_counts_only_rows_with_weight():
    rows = Updates.of(np.diag([1.0, 2.0, 100.0, 100.0, 100.0]))
    weights = np.array([0.5, 0.5, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(clip_factors(rows, weights), [1, 1, 0.03, 0.03, 0.03])


def test_a_sleeper_moves_the_model_by_its_weight_times_two_norms_at_most():
    memory = NodeMemory(0.9)

    rng = np.random.default_rng(1)
    rule = parse_aggregator("mean")
    for _ in range(10):
        rows = Updates.of(rng.normal(1, 0.1, (5, 4)))
        solve_remembered(rule, memory, range(5), rows, Budget(5, 1))
    strike = rng.normal(1, 0.1, (5, 4))
    strike[0] = -1000
    rows = Updates.of(strike)
    point = solve_remembered(rule, memory, range(5), rows, Budget(5, 1))
    (vector,) = point.vector(rows.stack)
    limit = 2 * np.median(np.linalg.norm(strike, axis=1))
    honest = strike[1:].sum(axis=0) / 5
    assert np.linalg.norm(vector - honest) <= limit / 5 + 1e-9


def test_a_node_that_turns_loses_its_weight_in_that_round():
    """Its past alone would keep it: forty honest rounds outweigh one lie."""
    rng, rule = np.random.default_rng(2), parse_aggregator("nnm(gm)")
    memory = NodeMemory(0.99)
    for _ in range(40):
        rows = Updates.of(rng.normal(0.1, 1, (9, 500)))
        weights = weigh_nodes(rule, memory, range(9), rows, Budget(9, 4))
    assert weights[:4].sum() > 0.2
    strike = rng.normal(0.1, 1, (9, 500))
    strike[:4] = rng.normal(-2, 0.3, (4, 500))
    rows = Updates.of(strike)
    weights = weigh_nodes(rule, memory, range(9), rows, Budget(9, 4))
    np.testing.assert_allclose(weights[:4], 0, atol=1e-12)
    remembered = np.array([held[0] for held in memory.state_dict()["rows"].values()])
    assert rule.weigh(remembered, f=4)[:4].sum() > 0.2


def test_a_model_of_another_size_is_refused():
    memory = NodeMemory(0.5)
    memory.remember([1], Updates.of(np.ones((1, 3))))
    with pytest.raises(ValueError, match="a model that changes its size"):
        memory.remember([1], Updates.of(np.ones((1, 4))))


@pytest.mark.parametrize(
    "rule",
    [
        *("cwmed", "nnm(cwtm)", "bulyan", "hierarchical(gm)"),
        *("lasa", "layerwise(gm)", "nnm(layerwise(ctma(gm)))"),
    ],
)
def test_rules_that_weigh_no_clients_are_refused(rule):
    with pytest.raises(ValueError, match="`aggregator` should be a rule that weighs"):
        RobustStrategy(FedAvg(), rule, num_malicious_nodes=1, memory=0.5)


class Median(Krum):
    """A rule of a user's own that gives clients no weights."""

    def _point(self, rows, budget):
        return parse_aggregator("cwmed").solve(rows, budget)


def test_a_rule_of_a_users_own_without_weights_ends_the_run_with_the_reason(caplog):
    with pytest.raises(RuntimeError, match="No round of 2 was aggregated"):
        run(Median(), rounds=2)
    assert "should be a rule that weighs whole clients" in caplog.text


@pytest.mark.parametrize("memory", [-0.1, 1.0, float("nan"), True, "0.5"])
def test_a_memory_out_of_range_is_refused(memory):
    with pytest.raises(ValueError, match=r"`memory` should be a number in \[0, 1\)"):
        RobustStrategy(FedAvg(), "caf", num_malicious_nodes=1, memory=memory)


def test_ray_is_refused():
    with pytest.raises(ValueError, match='`backend` should be "local" beside'):
        RobustStrategy(
            FedAvg(), "caf", num_malicious_nodes=1, memory=0.5, backend="ray"
        )
