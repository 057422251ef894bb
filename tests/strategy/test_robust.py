"""RobustStrategy: whose replies count, how many are enough, what it hands on."""

import logging
import math

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from flwr_ctma.aggregators import CTMA, FLTrust, GeometricMedian, parse_aggregator
from flwr_ctma.messages.schema import ReplySchema
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy
from flwr_ctma.strategy.guarantee import caveats, guarantee
from flwr_ctma.strategy.round import selection
from flwr_ctma.strategy.round.metrics import clip_to_honest_range, trimmed_mean
from flwr_ctma.strategy.round.tolerance import Tolerance, effective_f, min_replies
from flwr_ctma.strategy.round.weights import bounded_weights

SENT = np.linspace(-1, 1, 30, dtype=np.float32)


def record(w):
    return ArrayRecord({"w": Array(np.asarray(w))})


def rows(n, seed=0):
    return SENT + np.random.default_rng(seed).normal(0.1, 0.02, (n, 30)).astype("f4")


class Echo(FedAvg):
    """FedAvg that keeps the replies it sees: a class of one's own."""

    def aggregate_train(self, server_round, replies):
        self.seen = list(replies)
        return super().aggregate_train(server_round, self.seen)

    def aggregate_evaluate(self, server_round, replies):
        self.seen = list(replies)
        return super().aggregate_evaluate(server_round, self.seen)


def configured(strategy, n, connected=None, server_round=1):
    """Messages of a round, with the ids that a Grid gives when it sends them."""
    grid = InProcessGrid(ClientApp(), connected or n)
    strategy.strategy.min_train_nodes = n
    strategy.strategy.min_available_nodes = n
    strategy.strategy.fraction_train = n / (connected or n)
    messages = strategy.configure_train(
        server_round, record(SENT), ConfigRecord(), grid
    )
    assert isinstance(messages, list) and len(messages) == n
    for i, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"asked-{i}"
    return messages


def answers(messages, arrays, metrics=None):
    metrics = metrics or [{"num-examples": 10, "loss": 1.0}] * len(messages)
    return [
        Message(
            RecordDict({"arrays": record(w), "metrics": MetricRecord(m)}),
            reply_to=asked,
        )
        for asked, w, m in zip(messages, arrays, metrics, strict=False)
    ]


def aggregate(strategy, messages, replies):
    arrays, metrics = strategy.aggregate_train(1, replies)
    return arrays["w"].numpy(), metrics


@pytest.fixture
def warnings():
    """What is logged as a warning."""
    found = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda entry: found.append(entry.getMessage())
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.mark.parametrize("rule", ["ctma(gm)", "cwmed", "nnm(cwtm)", "mean", "krum"])
def test_the_result_is_the_rule_applied_to_the_updates(rule):
    """Oracle: the rule on the plain matrix of replies less what was sent."""
    strategy = RobustStrategy(Echo(), rule, num_malicious_nodes=2)
    messages = configured(strategy, 9)
    found, _ = aggregate(strategy, messages, answers(messages, rows(9)))
    expected = SENT + parse_aggregator(rule)(rows(9) - SENT, f=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_flowers_own_strategy_sees_one_robust_reply(monkeypatch):
    seen = []
    average = flower.FedAvg.aggregate_train

    def aggregate_train(self, server_round, replies):
        seen.extend(replies)
        return average(self, server_round, seen)

    aggregate_train.__module__ = average.__module__
    monkeypatch.setattr(flower.FedAvg, "aggregate_train", aggregate_train)
    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=1)
    messages = configured(strategy, 5)
    said = [{"num-examples": 10 + i, "loss": float(i)} for i in range(5)]
    aggregate(strategy, messages, answers(messages, rows(5), said))
    (reply,) = seen
    assert set(reply.content) == {"arrays", "metrics"}
    assert reply.content["metrics"] == {"num-examples": 12.0, "loss": 2.0}
    assert reply.metadata.reply_to_message_id in {"asked-0"}


def test_a_class_of_ones_own_sees_a_reply_for_each_accepted_one():
    """Robust arrays, metrics in the honest range, errors, and no rejected reply."""
    strategy = RobustStrategy(Echo(), num_malicious_nodes=2)
    messages = configured(strategy, 9)
    said = [{"num-examples": 10, "loss": float(i)} for i in range(9)]
    said[8]["loss"] = 1e30
    sent = rows(9)
    sent[1] = np.nan
    replies = answers(messages, sent, said)
    replies[0] = Message(Error(3, "out of memory"), reply_to=messages[0])
    for i, reply in enumerate(replies[1:], 1):
        reply.content["info"] = ConfigRecord({"i": i})
    found, metrics = aggregate(strategy, messages, replies)
    *good, error = strategy.strategy.seen
    assert error.has_error() and len(good) == metrics["replies-accepted"] == 7
    assert [reply.content["info"]["i"] for reply in good] == list(range(2, 9))
    for reply in good:
        assert (reply.content["arrays"]["w"].numpy() == found).all()
    losses = [reply.content["metrics"]["loss"] for reply in good]
    assert losses == [4.0, 4.0, 4.0, 5.0, 6.0, 6.0, 6.0]
    assert metrics["loss"] == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("n", [3, 7, 30])
def test_an_average_of_equal_copies_is_the_aggregate_to_the_bit(n):
    """FedAvg on one reply, and a class of one's own on n of them."""
    results = []
    for kind in (FedAvg, Echo):
        strategy = RobustStrategy(kind(), num_malicious_nodes=1)
        messages = configured(strategy, n)
        said = [{"num-examples": 10 + i} for i in range(n)]
        replies = answers(messages, rows(n), said)
        results.append(aggregate(strategy, messages, replies)[0])
    assert results[0].tobytes() == results[1].tobytes()


def test_a_step_of_ones_own_after_the_average_is_kept():
    """Even a short one."""

    class Stepping(Echo):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return record(arrays["w"].numpy() + np.float32(1e-4)), metrics

    found = []
    for kind in (Echo, Stepping):
        strategy = RobustStrategy(kind(), num_malicious_nodes=1)
        messages = configured(strategy, 5)
        found.append(aggregate(strategy, messages, answers(messages, rows(5)))[0])
    np.testing.assert_allclose(found[1] - found[0], 1e-4, rtol=0.01)


def test_a_metrics_function_that_counts_and_takes_a_spread_sees_each_client():
    """In training and evaluation; a liar widens the spread no further than honest."""

    def spread(contents, key):
        losses = [content["metrics"]["loss"] for content in contents]
        return MetricRecord({"n": len(losses), "spread": max(losses) - min(losses)})

    inside = FedAvg(train_metrics_aggr_fn=spread, evaluate_metrics_aggr_fn=spread)
    strategy = RobustStrategy(inside, num_malicious_nodes=1)
    messages = configured(strategy, 5)
    said = [{"loss": loss} for loss in (1.0, 2.0, 3.0, 4.0, 1e30)]
    _, metrics = aggregate(strategy, messages, answers(messages, rows(5), said))
    assert metrics["n"] == 5 and metrics["spread"] == 2.0
    grid = InProcessGrid(ClientApp(), 5)
    asked = strategy.configure_evaluate(1, record(SENT), ConfigRecord(), grid)
    for i, message in enumerate(asked):
        message.metadata.__dict__["_message_id"] = f"evaluate-{i}"
    replies = [
        Message(RecordDict({"metrics": MetricRecord(s)}), reply_to=m)
        for m, s in zip(asked, said[-len(asked) :], strict=True)
    ]
    metrics = strategy.aggregate_evaluate(1, replies)
    assert metrics["n"] == len(asked)
    assert inside.train_metrics_aggr_fn is spread
    assert inside.evaluate_metrics_aggr_fn is spread


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=9),
    st.lists(st.dictionaries(st.just("loss"), st.floats()), max_size=8),
)
def test_clipped_metrics_stay_in_the_honest_range(honest, lies):
    lies = lies[: len(honest) - 1]
    records = [MetricRecord({"loss": x}) for x in honest]
    records += [MetricRecord(said) for said in lies]
    averages, _ = trimmed_mean(records, f=len(lies))
    for clipped in clip_to_honest_range(records, averages, f=len(lies)):
        assert min(honest) <= clipped["loss"] <= max(honest)


def test_models_that_differ_between_clients_are_refused():
    class PerClient(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = super().configure_train(server_round, arrays, config, grid)
            for i, message in enumerate(messages):
                own = {"arrays": record(arrays["w"].numpy()[: 10 + i])}
                message.content = RecordDict(own)
            return messages

    strategy = RobustStrategy(PerClient(), num_malicious_nodes=1)
    with pytest.raises(ValueError, match="sends the same model to all clients"):
        configured(strategy, 5)


def test_clients_that_send_part_of_the_model_end_the_run_in_the_first_round():
    app = ClientApp()

    @app.train()
    def train(message, context):
        content = {"arrays": record(SENT), "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    model = ArrayRecord({"w": Array(SENT), "head": Array(SENT)})
    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=2)
    with pytest.raises(ValueError, match=r"5 of 5 replies do not fit.*'head'.*FedPer"):
        strategy.start(InProcessGrid(app, 5), model, num_rounds=2)


def test_names_of_records_and_keys_are_those_of_the_app():
    """A custom average of metrics finds them under the name that clients use."""

    def average(contents, key):
        content = contents[0]
        return MetricRecord({"seen": content["scores"]["loss"], "n": len(contents)})

    inside = Echo(arrayrecord_key="model", weighted_by_key="size")
    inside.train_metrics_aggr_fn = average
    strategy = RobustStrategy(inside, num_malicious_nodes=1)
    messages = configured(strategy, 5)
    replies = [
        Message(
            RecordDict({"a": record(w), "scores": MetricRecord({"loss": 3.0})}),
            reply_to=asked,
        )
        for asked, w in zip(messages, rows(5), strict=True)
    ]
    _, metrics = aggregate(strategy, messages, replies)
    assert metrics["seen"] == 3.0 and metrics["n"] == 5
    assert strategy.strategy.seen[0].content["scores"]["size"] == 1.0


@pytest.mark.parametrize("rule", ["mean", "ctma(gm)", "bucketing(cwmed)", "dnc"])
def test_neither_arrival_nor_node_ids_change_a_bit(rule):
    """The same replies, coming in other orders and from other nodes."""
    results = []
    for order in ([*range(9)], [*range(8, -1, -1)], [3, 1, 4, 8, 5, 7, 2, 6, 0]):
        for sent in (rows(9), rows(9)[order]):
            strategy = RobustStrategy(Echo(), rule, num_malicious_nodes=3)
            messages = configured(strategy, 9)
            replies = answers(messages, sent)
            arrays, _ = aggregate(strategy, messages, [replies[i] for i in order])
            results.append(arrays)
    assert all((result == results[0]).all() for result in results)


def test_only_first_replies_to_what_was_asked_count():
    """Replies twice, of nobody, to another round: none counts, none is attributed."""
    strategy = RobustStrategy(Echo(), num_malicious_nodes=2)
    old = configured(strategy, 9)
    for message in old:
        message.metadata.__dict__["_message_id"] += "-old"
    messages = configured(strategy, 9)
    good = answers(messages, rows(9))
    far = [SENT + 5] * 9
    late = answers(old, far)
    twice = answers(messages[:1], far)
    found, metrics = aggregate(strategy, messages, [*late, *good, *twice, *twice])
    messages = configured(strategy, 9)
    expected, _ = aggregate(strategy, messages, answers(messages, rows(9)))
    assert (found == expected).all()
    assert metrics["replies-accepted"] == 9 and metrics["nodes-rejected"] == []


def test_a_dead_node_is_told_by_the_message_it_did_not_answer():
    """Flower says that the error comes from node 1."""
    strategy = RobustStrategy(Echo(), num_malicious_nodes=2)
    messages = configured(strategy, 9)
    replies = answers(messages, rows(9))
    dead = Message(Error(5, "Node unavailable"), reply_to=messages[4])
    dead.metadata.__dict__["_src_node_id"] = 1
    replies[4] = dead
    _, metrics = aggregate(strategy, messages, replies)
    node = messages[4].metadata.dst_node_id
    assert metrics["replies-missing"] == 1 and strategy.ledger[node].missing == 1
    assert strategy.ledger[1].missing == 0 or node == 1


def test_a_reply_that_breaks_the_inspection_costs_itself():
    """Metadata and content that no network could deliver."""
    strategy = RobustStrategy(Echo(), num_malicious_nodes=2)
    messages = configured(strategy, 9)
    replies = answers(messages, rows(9))
    replies[0].content["arrays"]["w"].data = 3
    replies[1].__dict__["_content"] = None
    _, metrics = aggregate(strategy, messages, replies)
    assert metrics["replies-accepted"] == 7
    nodes = [m.metadata.dst_node_id for m in messages[:2]]
    assert metrics["nodes-rejected"] == nodes
    assert [strategy.ledger[n].rejected for n in nodes] == [{"malformed": 1}] * 2


def test_too_few_replies_leave_the_model_as_it_is(warnings):
    strategy = RobustStrategy(Echo(), num_malicious_nodes=4)
    messages = configured(strategy, 9)
    found, metrics = aggregate(strategy, messages, answers(messages, rows(9))[:8])
    assert (found == SENT).all() and metrics["replies-missing"] == 1
    assert not hasattr(strategy.strategy, "seen")
    assert any("Skipped" in warning for warning in warnings)


@pytest.mark.accepts_nothing
@pytest.mark.parametrize("num_rounds", [1, 3])
def test_a_run_without_an_aggregated_round_raises_with_the_reasons(num_rounds):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] < 2:
            raise RuntimeError("no data here")
        nan = {"arrays": record(SENT * np.nan), "metrics": MetricRecord()}
        return Message(RecordDict(nan), reply_to=message)

    strategy = RobustStrategy(FedAvg(fraction_evaluate=0.0), num_malicious_nodes=2)
    with pytest.raises(RuntimeError) as error:
        strategy.start(InProcessGrid(app, 5), record(SENT), num_rounds=num_rounds)
    text = str(error.value)
    assert f"No round of {num_rounds} was aggregated" in text
    assert f"{3 * num_rounds} × not-finite: 'w'" in text
    assert f"{2 * num_rounds} × error" in text and "no data here" in text


def test_a_run_that_trains_nothing_on_purpose_does_not_raise():
    app = ClientApp()

    @app.evaluate()
    def evaluate(message, context):
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    strategy = RobustStrategy(FedAvg(fraction_train=0.0), num_malicious_nodes=1)
    result = strategy.start(InProcessGrid(app, 5), record(SENT), num_rounds=2)
    assert result.evaluate_metrics_clientapp[2]["loss"] == 0.5


def test_liars_that_give_themselves_away_do_not_stop_the_others():
    """At 8 of 17, eight that send NaN leave nine, which is an honest majority."""
    strategy = RobustStrategy(Echo(), num_malicious_nodes=8)
    messages = configured(strategy, 17)
    sent = rows(17)
    sent[:8] = np.nan
    found, metrics = aggregate(strategy, messages, answers(messages, sent))
    assert metrics["replies-accepted"] == 9
    assert np.abs(found - sent[8:].mean(0)).max() < 0.1


def test_a_rule_that_needs_more_replies_skips_the_round(warnings):
    """Bulyan needs 4f + 3."""
    strategy = RobustStrategy(Echo(), "bulyan", num_malicious_nodes=2)
    messages = configured(strategy, 11)
    replies = answers(messages, rows(11))
    assert (aggregate(strategy, messages, replies)[0] != SENT).any()
    messages = configured(strategy, 11)
    replies = answers(messages, rows(11))
    assert (aggregate(strategy, messages, replies[1:])[0] == SENT).all()
    assert any("Skipped" in warning for warning in warnings)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_what_is_borne_leaves_an_honest_majority(f, liars, honest):
    """However the f split into liars and rejected, trimming is enough and possible."""
    rejected = max(f - liars, 0)
    found = effective_f(f, liars + honest, rejected)
    if found is None:
        assert liars + honest < min_replies(f, rejected)
    else:
        assert 2 * found < liars + honest
        assert found == f or 2 * (found + 1) >= liars + honest
        if liars <= f:
            assert liars < honest


@pytest.mark.parametrize(
    ("malicious", "asked", "connected", "f"),
    [
        (3, 17, 17, 3),
        (0.25, 17, 17, 5),
        (0.3, 10, 10, 3),
        (0.49, 17, 17, 8),
        (0.0, 5, 5, 0),
        (8, 2, 2, 8),
        (30, 29, 150, 14),
        (0.2, 31, 1000, 15),
        (2, 10, 1000, 1),
    ],
)
def test_f_among_those_asked(malicious, asked, connected, f):
    """The samples are those of the published minimal sizes, for 100 rounds or more."""
    tolerance = Tolerance(malicious, rounds=500 if connected == 150 else 100)
    assert tolerance.among(asked, connected) == f


def test_samples_that_are_too_small_are_told_before_the_run(warnings):
    strategy = RobustStrategy(Echo(), "nnm(cwmed)", num_malicious_nodes=30)
    configured(strategy, 41, connected=100)
    assert any("Sample at least 43" in warning for warning in warnings)
    warnings.clear()
    configured(strategy, 43, connected=100)
    assert not warnings and strategy.f == 21


class Filling(InProcessGrid):
    """A grid on which a node more is connected each time one looks."""

    def __init__(self, app, n):
        super().__init__(app, n)
        self.connected = 0

    def get_node_ids(self):
        self.connected += 1
        return super().get_node_ids()[: self.connected]


@pytest.fixture
def seconds(monkeypatch):
    """Sleeps that end at once, by their lengths."""
    slept = []
    monkeypatch.setattr(selection.time, "sleep", slept.append)
    monkeypatch.setattr(selection.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(selection, "_is_fixed", lambda grid: False)
    return slept


@pytest.mark.parametrize(("rule", "needed"), [("ctma(gm)", 7), ("bulyan", 15)])
def test_a_run_waits_for_the_nodes_that_the_rule_needs(rule, needed, seconds, caplog):
    app = ClientApp()

    @app.train()
    def train(message, context):
        i = context.node_config["partition-id"]
        content = {"arrays": record(rows(20)[i]), "metrics": MetricRecord()}
        return Message(RecordDict(content), reply_to=message)

    strategy = RobustStrategy(
        FedAvg(fraction_evaluate=0.0), rule, num_malicious_nodes=3
    )
    result = strategy.start(Filling(app, 20), record(SENT), num_rounds=1)
    assert result.train_metrics_clientapp[1]["replies-accepted"] >= needed
    assert len(seconds) == needed - 1
    assert f"2 connected ({rule} needs {needed} against 3 malicious" in caplog.text


def test_a_run_that_gets_too_few_nodes_ends_with_a_sentence(seconds):
    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=3, node_timeout=30)
    sentence = r"2 nodes are connected; caf needs 7 .*num-supernodes=7"
    with pytest.raises(RuntimeError, match=sentence):
        strategy.start(InProcessGrid(ClientApp(), 2), record(SENT), num_rounds=3)
    assert sum(seconds) == 30


def test_too_few_nodes_in_this_process_are_refused_at_once():
    strategy = RobustStrategy(Echo(), num_malicious_nodes=8)
    with pytest.raises(RuntimeError, match=r"2 nodes are connected; .* needs 17"):
        configured(strategy, 2)


def test_nodes_that_leave_a_run_under_way_cost_a_warning(seconds, warnings):
    strategy = RobustStrategy(Echo(), num_malicious_nodes=2, node_timeout=3)
    messages = configured(strategy, 5)
    aggregate(strategy, messages, answers(messages, rows(5)))
    configured(strategy, 4, server_round=2)
    assert any("4 nodes are connected" in warning for warning in warnings)


def test_a_sample_that_is_too_small_for_the_rule_is_refused_before_round_1():
    """Bulyan needs 4f + 3 of the 11 nodes; the strategy samples 10."""
    strategy = RobustStrategy(Echo(), "bulyan", num_malicious_nodes=2)
    strategy.strategy.min_train_nodes = 10
    strategy.strategy.fraction_train = 10 / 11
    grid = InProcessGrid(ClientApp(), 11)
    with pytest.raises(ValueError, match="n = 10 rows"):
        strategy.configure_train(1, record(SENT), ConfigRecord(), grid)


@pytest.mark.parametrize("number", [np.int64(3), np.float32(0.25), np.uint8(0)])
def test_numpy_numbers_of_malicious_nodes_are_taken(number):
    assert Tolerance(number) == Tolerance(number.item())
    assert type(Tolerance(number).of(17)) is int
    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=number)
    assert type(strategy.num_malicious_nodes) is type(number.item())


@pytest.mark.parametrize(
    "f",
    [
        -1,
        True,
        np.bool_(1),
        np.int64(-1),
        np.float64(0.5),
        0.5,
        -0.1,
        "3",
        None,
        float("nan"),
    ],
)
def test_a_number_of_malicious_nodes_that_is_none(f):
    with pytest.raises(ValueError, match="Parameter `num_malicious_nodes` should be"):
        RobustStrategy(FedAvg(), num_malicious_nodes=f)


def test_the_number_of_malicious_nodes_must_be_given():
    with pytest.raises(TypeError, match="num_malicious_nodes"):
        RobustStrategy(FedAvg())


def wrapped_by(kind, **settings):
    return kind(
        FedAvg(),
        noise_multiplier=1.0,
        num_sampled_clients=100,
        **settings,
    )


@pytest.mark.parametrize(
    "inside",
    [
        lambda: wrapped_by(
            flower.DifferentialPrivacyServerSideFixedClipping, clipping_norm=1.0
        ),
        lambda: wrapped_by(
            flower.DifferentialPrivacyClientSideFixedClipping, clipping_norm=1.0
        ),
        lambda: wrapped_by(flower.DifferentialPrivacyServerSideAdaptiveClipping),
        lambda: wrapped_by(flower.DifferentialPrivacyClientSideAdaptiveClipping),
        lambda: flower.QFedAvg(client_learning_rate=0.1),
        flower.FedXgbBagging,
        flower.FedXgbCyclic,
        lambda: flower.Krum(num_malicious_nodes=1),
        lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2),
        lambda: flower.Bulyan(num_malicious_nodes=1),
        flower.FedMedian,
        flower.FedTrimmedAvg,
        lambda: RobustStrategy(FedAvg(), num_malicious_nodes=1),
        lambda: FedAvg,
        lambda: None,
    ],
)
def test_strategies_that_must_see_single_replies_are_refused(inside):
    """The sentence says why, and what to do."""
    with pytest.raises(ValueError, match="Parameter `strategy` should be") as error:
        RobustStrategy(inside(), num_malicious_nodes=1)
    named = str(error.value).split('aggregator="')[1:]
    for rest in named:
        parse_aggregator(rest.split('"')[0])


def test_rules_that_need_a_trusted_row_are_refused():
    for rule in ("monna", "nnm(monna)", FLTrust(), "ctma(fltrust)", "zeno(gm)"):
        with pytest.raises(ValueError, match="Parameter `aggregator` should be"):
            RobustStrategy(FedAvg(), rule, num_malicious_nodes=1)
    with pytest.raises(ValueError, match="ctma"):
        RobustStrategy(FedAvg(), "cmta(gm)", num_malicious_nodes=1)
    with pytest.raises(ValueError, match="Parameter `aggregator` should be"):
        RobustStrategy(FedAvg(), None, num_malicious_nodes=1)


def test_rule_and_spelling_are_the_same():
    given_rule = RobustStrategy(
        FedAvg(), CTMA(GeometricMedian()), num_malicious_nodes=1
    )
    assert (
        given_rule.aggregator
        == RobustStrategy(FedAvg(), "ctma(gm)", num_malicious_nodes=1).aggregator
    )


def test_centred_clipping_starts_from_the_update_before():
    """Oracle: the rule on the plain matrix with the last output as its reference."""
    strategy = RobustStrategy(Echo(), "cclip(radius=0.1)", num_malicious_nodes=2)
    rule, before = parse_aggregator("cclip(radius=0.1)"), None
    for seed in range(3):
        messages = configured(strategy, 9)
        sent = rows(9, seed)
        found, _ = aggregate(strategy, messages, answers(messages, sent))
        before = rule(sent - SENT, f=2, reference=before)
        np.testing.assert_allclose(found, SENT + before, rtol=1e-5, atol=1e-6)
        resumed = RobustStrategy(Echo(), "cclip(radius=0.1)", num_malicious_nodes=2)
        resumed.load_state_dict(strategy.state_dict())
        strategy = resumed


def test_claimed_weights_count_and_cannot_take_over():
    """A liar that claims 10^30 examples has the weight of the largest honest one."""
    strategy = RobustStrategy(
        Echo(), "mean", num_malicious_nodes=1, weighted_by_key="num-examples"
    )
    claims = [10, 20, 30, 40, 1e30]
    messages = configured(strategy, 5)
    said = [{"num-examples": claim} for claim in claims]
    found, _ = aggregate(strategy, messages, answers(messages, rows(5), said))
    expected = np.average(rows(5), axis=0, weights=[10, 20, 30, 40, 40])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("claim", [0, -5, float("nan"), float("inf"), [3], None])
def test_a_weight_that_is_none_costs_the_reply(claim):
    strategy = RobustStrategy(
        Echo(), num_malicious_nodes=1, weighted_by_key="num-examples"
    )
    messages = configured(strategy, 5)
    said = [{"num-examples": 10} for _ in range(5)]
    said[2] = {} if claim is None else {"num-examples": claim}
    _, metrics = aggregate(strategy, messages, answers(messages, rows(5), said))
    assert metrics["nodes-rejected"] == [messages[2].metadata.dst_node_id]


def test_weights_that_no_rule_can_bear_are_not_used(warnings):
    strategy = RobustStrategy(
        Echo(), "mean", num_malicious_nodes=2, weighted_by_key="num-examples"
    )
    messages = configured(strategy, 5)
    said = [{"num-examples": c} for c in (1, 1, 50, 50, 50)]
    found, _ = aggregate(strategy, messages, answers(messages, rows(5), said))
    np.testing.assert_allclose(found, rows(5).mean(0), rtol=1e-5, atol=1e-6)
    assert any("count the same" in warning for warning in warnings)


@pytest.mark.parametrize("claim", [1e-300, 1e-13, 1e-9])
@pytest.mark.parametrize("rule", ["cwtm", "cwmed", "gm", "ctma(cwtm)"])
def test_a_claim_of_next_to_nothing_leaves_a_model(rule, claim):
    """The honest two then hold half of the weight each, but for a hair."""
    strategy = RobustStrategy(
        Echo(), rule, num_malicious_nodes=1, weighted_by_key="num-examples"
    )
    messages = configured(strategy, 3)
    said = [{"num-examples": c} for c in (10, 10, claim)]
    sent = rows(3)
    sent[2] += 1e3
    found, _ = aggregate(strategy, messages, answers(messages, sent, said))
    assert np.abs(found - sent[:2].mean(axis=0)).max() < 0.1


def test_a_rule_without_weights_says_so_at_once():
    with pytest.raises(ValueError, match=r"`aggregator` .* `weighted_by_key`"):
        RobustStrategy(
            FedAvg(), "krum", num_malicious_nodes=1, weighted_by_key="num-examples"
        )


@pytest.mark.parametrize("rule", ["mean", "ctma(mean)"])
def test_a_rule_that_is_not_robust_promises_nothing(rule):
    rule = parse_aggregator(rule)
    assert "no bound on the error" in guarantee(rule, n=9, f=2)
    assert any("not robust" in caveat for caveat in caveats(rule, n=9, f=2))
    assert not list(caveats(rule, n=9, f=0))


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers()
SAID = st.dictionaries(
    st.sampled_from(["loss", "accuracy", "by-class", "odd"]),
    NUMBERS | st.lists(st.floats(), max_size=4),
    max_size=4,
)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=9),
    st.lists(SAID, max_size=8),
)
def test_no_liar_moves_a_metric_out_of_the_honest_range(honest, lies):
    """Whatever f < n/2 liars say, or leave out; and what they invent is not there.

    A value that is not finite proves no lie: the key is then left out near n = 2f + 1.
    """
    lies = lies[: len(honest) - 1]
    truth = [{"loss": x, "by-class": [x, -x]} for x in honest]
    records = [MetricRecord(said) for said in (*truth, *lies)]
    metrics, _ = trimmed_mean(records, f=len(lies))
    assert set(metrics) <= {"loss", "by-class"}
    for key in {"loss", "by-class"} - set(metrics):
        assert any(not np.isfinite(lie.get(key, 0.0)).all() for lie in lies)
        assert len(records) <= 3 * len(lies)
    assert min(honest) <= metrics.get("loss", honest[0]) <= max(honest)
    by_class = metrics.get("by-class", [honest[0]] * 2)
    assert min(honest) <= by_class[0] <= max(honest)
    assert len(by_class) == 2


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    st.sampled_from([1e30, -1e30]),
    st.integers(1, 3),
)
def test_honest_values_that_are_not_finite_hand_no_metric_to_liars(honest, lie, f):
    """One honest NaN, and f liars of n ≥ 2f + 1: the key is honest or left out."""
    honest = honest[: max(len(honest), 1)]
    records = [MetricRecord({"loss": x}) for x in (*honest, np.nan, *[lie] * f)]
    if len(records) >= 2 * f + 1:
        metrics, _ = trimmed_mean(records, f=f)
        assert min(honest) <= metrics.get("loss", honest[0]) <= max(honest)


ODDITIES = {
    "no examples": ({"num-examples": 0}, 1.0),
    "no weight": ({"loss": 1.0}, 1.0),
    "weight NaN": ({"num-examples": float("nan")}, 1.0),
    "one NaN": ({"num-examples": 10}, np.nan),
}


@pytest.mark.parametrize("odd", ODDITIES)
@pytest.mark.parametrize("f", [2, 3, 5])
@pytest.mark.parametrize("spare", [0, 1])
def test_an_honest_oddity_does_not_hand_the_model_to_liars(odd, f, spare):
    """At n = 2f + 1 and 2f + 2, all f liars send the same."""
    strategy = RobustStrategy(
        Echo(), "cwmed", num_malicious_nodes=f, weighted_by_key="num-examples"
    )
    n = 2 * f + 1 + spare
    messages = configured(strategy, n)
    sent = rows(n)
    sent[:f] = -50.0
    claims, factor = ODDITIES[odd]
    sent[-1] *= factor
    said = [{"num-examples": 10}] * (n - 1) + [claims]
    found, _ = aggregate(strategy, messages, answers(messages, sent, said))
    assert np.abs(found - SENT).max() < 10


@pytest.mark.parametrize("f", [2, 3, 5, 8])
@pytest.mark.parametrize("spare", [0, 1])
def test_two_honest_nans_in_a_round_do_not_hand_the_model_to_liars(f, spare):
    """All f liars send the same; at n = 2f + 1 and 2f + 2 the round is skipped."""
    strategy = RobustStrategy(Echo(), "cwmed", num_malicious_nodes=f)
    n = 2 * f + 1 + spare
    messages = configured(strategy, n)
    sent = rows(n)
    sent[:f], sent[-2:] = -50.0, np.nan
    found, metrics = aggregate(strategy, messages, answers(messages, sent))
    assert metrics["replies-accepted"] == n - 2
    assert (found == SENT).all()


def test_rejections_of_more_than_f_lower_nothing():
    """Most honest clients break: three liars of seven are not left as the majority."""
    strategy = RobustStrategy(Echo(), "cwmed", num_malicious_nodes=3)
    messages = configured(strategy, 7)
    sent = rows(7)
    sent[:3], sent[3:] = -50.0, np.nan
    found, metrics = aggregate(strategy, messages, answers(messages, sent))
    assert metrics["replies-accepted"] == 3
    assert (found == SENT).all()


def test_fault_in_metrics_says_what_is_wrong():
    lies = [{}, {"loss": math.nan}, {"loss": [1.0]}, {"loss": 1.0, "gain": 2}]
    for lie, word in zip(
        lies, ["missing", "not finite", "unlike", "unknown"], strict=True
    ):
        records = [MetricRecord({"loss": 1.0}) for _ in range(4)]
        _, faults = trimmed_mean([*records, MetricRecord(lie)], f=1)
        assert list(faults) == [4]
        key = "gain" if "gain" in lie else "loss"
        assert faults[4].detail.startswith(f"'{key}' is {word}")


def test_a_trimmed_mean_by_hand():
    records = [MetricRecord({"loss": x}) for x in (4.0, 1, 2.5, -1e9, 3)]
    assert trimmed_mean(records, f=0)[0]["loss"] == pytest.approx(
        sum((4, 1, 2.5, -1e9, 3)) / 5
    )
    assert trimmed_mean(records, f=1)[0]["loss"] == pytest.approx((1 + 2.5 + 3) / 3)
    assert trimmed_mean(records, f=2)[0]["loss"] == 2.5


def test_metrics_that_honest_clients_do_not_share_are_left_out():
    """Half of them measure something else: that is no fault of theirs."""
    records = [MetricRecord({"loss": 1.0, f"extra-{i % 2}": 2.0}) for i in range(6)]
    assert trimmed_mean(records, f=1) == (MetricRecord({"loss": 1.0}), {})


def test_a_flood_of_keys_names_one():
    flood = MetricRecord({f"key-{i}": 1.0 for i in range(20_000)})
    honest = [MetricRecord({"loss": 1.0})] * 4
    metrics, faults = trimmed_mean([*honest, flood], f=1)
    assert metrics == {"loss": 1.0} and list(faults) == [4]
    assert len(str(faults[4])) < 150


@given(
    st.lists(st.floats(1, 1e6), min_size=3, max_size=12),
    st.lists(st.floats(1e-9, 1e300), max_size=3),
)
def test_no_liar_is_heavier_than_an_honest_client(honest, lies):
    lies = lies[: (len(honest) - 1) // 2]
    weights, share = bounded_weights([*honest, *lies], f=len(lies))
    assert weights.max() <= max(honest)
    assert weights[len(honest) :].sum() / weights.sum() <= share + 1e-12


def test_a_liar_cannot_hide_in_buffers():
    """One that is near in the weights and far in the running variance."""
    sent = {"w": SENT, "bn.running_var": np.ones(4, np.float32)}
    arrays = ArrayRecord({k: Array(v) for k, v in sent.items()})
    strategy = RobustStrategy(Echo(), num_malicious_nodes=1)
    grid = InProcessGrid(ClientApp(), 5)
    strategy.strategy.min_train_nodes = strategy.strategy.min_available_nodes = 5
    messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    replies = []
    for i, (message, row) in enumerate(zip(messages, rows(5), strict=True)):
        message.metadata.__dict__["_message_id"] = str(i)
        variance = np.full(4, -1e9 if i == 0 else 1.0 + i, np.float32)
        row = rows(5).mean(0) if i == 0 else row
        content = {"w": Array(row), "bn.running_var": Array(variance)}
        content = {"arrays": ArrayRecord(content), "metrics": MetricRecord()}
        replies.append(Message(RecordDict(content), reply_to=message))
    found, metrics = strategy.aggregate_train(1, replies)
    assert metrics["nodes-trimmed"] != [messages[0].metadata.dst_node_id]
    np.testing.assert_allclose(found["bn.running_var"].numpy(), 3.0)


def test_reports_are_what_flower_takes():
    """Counts are int, nodes lists of int: 64-bit ids, and nothing of NumPy."""
    strategy = RobustStrategy(Echo(), num_malicious_nodes=1)
    messages = configured(strategy, 5)
    far = rows(5)
    far[3] += 9
    _, metrics = aggregate(strategy, messages, answers(messages, far))
    for key in ("nodes-rejected", "nodes-trimmed", "nodes-suspected"):
        assert all(type(node) is int for node in metrics[key])
    assert metrics["nodes-trimmed"] == [messages[3].metadata.dst_node_id]
    MetricRecord.inflate(metrics.deflate())


def test_nothing_asked_is_nothing_done():
    """FedAvg with fraction 0 asks nobody, and no phase begins before it is set up."""
    strategy = RobustStrategy(
        FedAvg(fraction_train=0.0, fraction_evaluate=0.0), num_malicious_nodes=1
    )
    assert strategy.aggregate_train(1, []) == (None, None)
    assert strategy.aggregate_evaluate(1, []) is None
    grid = InProcessGrid(ClientApp(), 3)
    assert strategy.configure_train(1, record(SENT), ConfigRecord(), grid) == []
    assert strategy.configure_evaluate(1, record(SENT), ConfigRecord(), grid) == []
    assert strategy.aggregate_train(1, []) == (None, None)
    assert strategy.aggregate_evaluate(1, []) is None


def test_an_evaluation_without_replies_records_how_many_are_missing():
    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=1)
    grid = InProcessGrid(ClientApp(), 5)
    asked = strategy.configure_evaluate(1, record(SENT), ConfigRecord(), grid)
    for i, message in enumerate(asked):
        message.metadata.__dict__["_message_id"] = f"evaluate-{i}"
    metrics = strategy.aggregate_evaluate(1, [])
    assert (metrics["replies-accepted"], metrics["replies-missing"]) == (0, 5)


def test_a_grid_that_gives_no_ids_is_an_error():
    strategy = RobustStrategy(Echo(), num_malicious_nodes=1)
    messages = configured(strategy, 5)
    for message in messages:
        message.metadata.__dict__["_message_id"] = ""
    with pytest.raises(ValueError, match="id of its own"):
        strategy.aggregate_train(1, answers(messages, rows(5)))


def test_a_model_that_is_not_finite_is_not_sent():
    strategy = RobustStrategy(FedAvg(), num_malicious_nodes=0)
    grid = InProcessGrid(ClientApp(), 3)
    with pytest.raises(ValueError, match="finite"):
        strategy.configure_train(1, record(SENT * np.nan), ConfigRecord(), grid)


def test_summary_tells_its_settings_then_those_inside(caplog):
    lines = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda entry: lines.append(entry.getMessage())
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        RobustStrategy(FedAvg(), "ctma(nnm(cwmed))", num_malicious_nodes=0.3).summary()
    finally:
        logger.removeHandler(handler)
    text = "\n".join(lines)
    assert "ctma(nnm(cwmed))" in text and "0.3" in text
    assert text.index("ctma") < text.index("num-examples")


def test_what_was_sent_is_what_the_messages_hold():
    """A strategy may send something else than the model it was given."""

    class Half(Echo):
        def configure_train(self, server_round, arrays, config, grid):
            half = record(arrays["w"].numpy()[:15])
            return super().configure_train(server_round, half, config, grid)

    strategy = RobustStrategy(Half(), "mean", num_malicious_nodes=0)
    messages = configured(strategy, 5)
    found, _ = aggregate(strategy, messages, answers(messages, rows(5)[:, :15]))
    np.testing.assert_allclose(found, rows(5)[:, :15].mean(0), atol=1e-6)
    assert ReplySchema(messages[0].content["arrays"]).measured == (0,)
