"""The ledger: counts, evidence, and that no honest node is suspected."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from sklearn.metrics import roc_auc_score

import flwr_ctma
from flwr_ctma import parse_aggregator
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.tournament import Match, Tournament
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy
from flwr_ctma.tracking.evidence import FAULTS, PROOFS
from flwr_ctma.tracking.ledger import Ledger, Record


def test_counts():
    ledger = Ledger()
    ledger.note(
        [1, 2, 3],
        distances=[1.0, 2.0, 9.0],
        trimmed=[3],
        f=1,
        rejected=[(4, "shape")],
        missing=[5],
    )
    ledger.note([1, 2], rejected=[(4, "shape"), (3, "keys")], missing=[5])
    assert vars(ledger[1]) == {
        "asked": 2,
        "missing": 0,
        "rejected": {},
        "trimmed": 0,
        "ranked": 1,
        "height": 0.0,
        "depth": 0.75,
        "tested": 0,
        "tested_height": 0.0,
        "tested_depth": 0.0,
    }
    assert ledger[3].trimmed == 1 and ledger[3].rejected == {"keys": 1}
    assert ledger[4].rejected == {"shape": 2} and ledger[4].asked == 2
    assert ledger[5].missing == 2 and ledger[5].suspicion == 0.0


@pytest.mark.parametrize("reason", ["shape", "not-finite"])
def test_a_proof_or_a_fault_ranks_as_farthest_and_is_no_evidence_of_ranks(reason):
    ledger = Ledger()
    ledger.note([1], rejected=[(4, reason), (5, "weight")])
    record = ledger[4]
    assert (record.ranked, record.height, record.depth) == (1, 1.0, 0.0)
    assert (record.tested, record.tested_height, record.tested_depth) == (0, 0.0, 0.0)
    assert ledger[5].ranked == 0


@pytest.mark.parametrize("distances", [[1.0], [1.0, 2.0, 3.0]])
def test_distances_of_other_nodes_are_refused(distances):
    with pytest.raises(ValueError, match="zip"):
        Ledger().note([1, 2], distances=distances)


def test_violators_with_the_most_proofs_and_faults_come_first():
    ledger = Ledger()
    for node, times in [(1, 1), (2, 3), (3, 2)]:
        ledger.note([], rejected=[(node, "shape"), (node, "not-finite")] * times)
    assert ledger.violators(1) == [2, 3, 1]
    assert ledger.violators(4) == [2, 3] and ledger.violators(5) == [2]


@pytest.mark.parametrize("predictable", [False, True])
def test_heights_by_hand(predictable):
    """n = 5, f = 1: ranks 1 to 5 are heights 0, ⅛, ⅜, ⅝, ⅞, and depths from ⅞ to 0."""
    ledger = Ledger()
    ledger.note(
        [1, 2, 3, 4, 5],
        distances=[3.0, 1.0, 5.0, 2.0, 4.0],
        predictable=predictable,
        f=1,
    )
    order = [ledger[n] for n in (2, 4, 1, 5, 3)]
    assert [8 * record.height for record in order] == [0, 1, 3, 5, 7]
    assert [8 * record.depth for record in order] == [7, 5, 3, 1, 0]
    tested = [8 * record.tested_height for record in order]
    assert tested == ([0, 1, 3, 5, 7] if predictable else [0] * 5)
    assert [r.tested for r in order] == [predictable] * 5
    ledger = Ledger()
    ledger.note([1, 2, 3], distances=[7.0, 7.0, 7.0], f=0)
    assert [ledger[n].height for n in (1, 2, 3)] == [0.5] * 3
    assert [ledger[n].depth for n in (1, 2, 3)] == [0.5] * 3


def test_suspicion_is_the_integral_of_the_theorem():
    """Oracle: the half-normal mixture of exp(λS − λ²T/12), by quadrature."""
    lam, step = np.linspace(0, 40, 400_001, retstep=True)
    prior = 2 * np.exp(-(lam**2) / 2) / math.sqrt(2 * math.pi)
    for height, depth, rounds in [(9.0, 1.0, 10), (3.0, 8.5, 12), (5.0, 5.0, 10)]:
        record = Record(tested=rounds, tested_height=height, tested_depth=depth)
        sides = []
        for total in (height, depth):
            values = prior * np.exp(lam * (total - rounds / 2) - lam**2 * rounds / 12)
            sides.append((values.sum() - values[0] / 2) * step)
        expected = max(math.log10(sum(sides) / 2), 0.0)
        assert record.suspicion == pytest.approx(expected, abs=1e-6)


def test_the_uniform_grid_is_as_narrow_as_the_proof_says():
    for size in range(1, 40):
        grid = (np.arange(1, size + 1) - 0.5) / size - 0.5
        for lam in (0.1, 1.0, 5.0, 30.0):
            assert np.exp(lam * grid).mean() <= math.exp(lam**2 / 24) * (1 + 1e-12)


def test_a_proof_makes_a_suspect_at_once_and_a_fault_does_not():
    nodes = list(range(16))
    for reason, rounds in [
        ("header", 1),
        ("shape", 3),
        ("not-finite", 3),
        ("weight", math.inf),
    ]:
        ledger = Ledger()
        for number in range(1, 31):
            ledger.note(nodes, rejected=[(16, reason)])
            assert (16 in ledger.suspects()) == (number >= rounds), (reason, number)
    assert ledger.violators(1) == [] and ledger[16].suspicion == 0.0


def test_every_reason_of_a_rejection_is_in_the_table():
    """All words that stand in the code for a reason are classed, or known not to be."""
    found = set()
    for path in Path(flwr_ctma.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"""(?:Rejection|_Reject)\(\s*"([a-z-]+)\"""", text))
    found |= {"header", "length", "shape"}  # raised by flwr_ctma.messages.npy
    found |= {"not-finite", "too-large"}  # spelled by the schema
    assert found - PROOFS - FAULTS == {"weight", "metrics"}
    assert not PROOFS & FAULTS


LIARS = {
    "near": lambda honest, rng: np.zeros(8),
    "far": lambda honest, rng: np.full(8, 99.0),
    "amid": lambda honest, rng: np.full(8, np.median(honest)),
    "mixed": lambda honest, rng: rng.choice([0.0, np.median(honest), 99.0], 8),
    "below one": lambda honest, rng: np.full(8, honest[0] - 1e-9),
    "above one": lambda honest, rng: np.full(8, honest[0] + 1e-9),
}


@pytest.mark.parametrize("lie", LIARS)
def test_honest_nodes_are_suspected_as_rarely_as_stated(lie):
    """Whatever 8 of 17 liars do: at most 1 honest node in 100 ever comes to 2."""
    rng = np.random.default_rng(3)
    high = total = 0
    for _ in range(40):
        ledger, reached = Ledger(), set()
        for _ in range(40):
            honest = rng.normal(1, 0.1, 9)
            distances = [*honest, *LIARS[lie](honest, rng)]
            ledger.note(range(17), distances=distances, predictable=True, f=8)
            reached |= {node for node in range(9) if ledger[node].suspicion >= 2}
            assert not set(ledger.suspects()) & set(range(9))
        high += len(reached)
        total += 9
    assert high <= total / 100


@pytest.mark.parametrize("rule", ["ctma(gm)", "cwmed", "caf", "nnm(cwmed)"])
@pytest.mark.parametrize("predictable", [False, True])
def test_no_honest_node_is_framed(rule, predictable):
    """Colluders lean away from one honest reply, so that it is far from the result.

    About the result of the same round this works, and is no evidence; about the result
    of the round before it does not work.
    """
    rng, ledger, n, f, d = np.random.default_rng(0), Ledger(), 17, 5, 300
    aggregator, before, tops = parse_aggregator(rule), None, 0
    for _ in range(60):
        honest = rng.normal(size=(n - f, d)) + 0.1
        away = honest[0] - honest.mean(0)
        away /= np.linalg.norm(away)
        lies = rng.normal(size=(f, d))
        lies = honest.mean(0) + lies - np.outer(lies @ away, away) - 8 * away
        rows = np.vstack([lies, honest])
        found = aggregator.aggregate(rows, f=f)
        distances = found.distances
        tops += np.argmax(distances) == f
        if predictable:
            center = np.zeros(d) if before is None else before
            distances = np.linalg.norm(rows - center, axis=1)
        ledger.note(range(n), distances=distances, predictable=predictable, f=f)
        assert not set(ledger.suspects()) & set(range(f, n))
        before = found.vector
    assert tops > 30  # the framing works against the distance to the result
    if not predictable:
        assert ledger.suspects() == []


ROWS, LIARS_OF_RUN, SIZE = 17, 5, 200


def honest_row(number, client):
    return np.random.default_rng([number, client]).normal(0.1, 1, SIZE)


def framing(number, client):
    """A colluder that knows all honest replies of the round, before they are sent."""
    honest = np.stack([honest_row(number, i) for i in range(LIARS_OF_RUN, ROWS)])
    away = honest[0] - honest.mean(0)
    away /= np.linalg.norm(away)
    lie = np.random.default_rng([number, client]).normal(size=SIZE)
    return honest.mean(0) + lie - (lie @ away) * away - 8 * away


def far_out(number, client):
    return 2 * honest_row(number, client)


@pytest.mark.parametrize(
    ("rule", "lie", "found"),
    [
        ("ctma(gm)", framing, 0),
        ("cwmed", framing, 0),
        ("caf", framing, 0),
        ("nnm(cwmed)", framing, 0),
        ("ctma(gm)", far_out, LIARS_OF_RUN),
    ],
)
def test_a_run_suspects_no_honest_node(rule, lie, found):
    """RobustStrategy ranks about the round before: framing fails, liars are found."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = int(context.node_config["partition-id"])
        number = message.content["config"]["server-round"]
        row = (lie if client < LIARS_OF_RUN else honest_row)(number, client)
        arrays = ArrayRecord([message.content["arrays"]["0"].numpy() + row])
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    inside = FedAvg(fraction_evaluate=0.0, min_available_nodes=ROWS)
    strategy = RobustStrategy(inside, rule, num_malicious_nodes=LIARS_OF_RUN)
    grid = InProcessGrid(app, ROWS)
    result = strategy.start(grid, ArrayRecord([np.zeros(SIZE)]), 80)
    nodes = grid.get_node_ids()
    assert [strategy.ledger[node].tested for node in nodes] == [79] * ROWS
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["replies-accepted"] == ROWS
        assert not {*metrics["nodes-suspected"]} & {*nodes[LIARS_OF_RUN:]}
    assert len(strategy.ledger.suspects()) >= found


def test_liars_that_are_far_out_are_found():
    """5 of 17, in 60 rounds: all of them are suspects, and they come first."""
    rng, ledger = np.random.default_rng(0), Ledger()
    for _ in range(60):
        distances = [*rng.normal(1, 0.1, 12), *rng.normal(3, 0.1, 5)]
        ledger.note(range(17), distances=distances, predictable=True, f=5)
    assert sorted(ledger.suspects()) == [12, 13, 14, 15, 16]
    assert {row["node"] for row in ledger.to_rows()[:5]} == {12, 13, 14, 15, 16}


def test_auc_against_scikit_learn():
    rng, ledger = np.random.default_rng(2), Ledger()
    for _ in range(20):
        distances = [*rng.normal(1, 0.3, 10), *rng.normal(1.2, 0.3, 7)]
        ledger.note(range(17), distances=distances, f=5)
    scores = [ledger[node].standing for node in range(17)]
    liars = set(range(10, 17))
    expected = roc_auc_score([node in liars for node in range(17)], scores)
    assert ledger.auc(liars) == pytest.approx(expected)
    assert ledger.auc([]) is ledger.auc(range(17)) is None


def test_colluders_that_are_too_near_are_found():
    """5 of 17 send the same, near to the center, in 60 rounds."""
    rng, ledger = np.random.default_rng(0), Ledger()
    for _ in range(60):
        distances = [*rng.normal(1, 0.1, 12), *[0.3] * 5]
        ledger.note(range(17), distances=distances, predictable=True, f=5)
    assert sorted(ledger.suspects()) == [12, 13, 14, 15, 16]


def test_rows_are_json_and_give_the_ledger_back():
    ledger = Ledger()
    ledger.note([2**63 + 1, 2], distances=[1.0, 2.0], rejected=[(7, "keys")])
    rows = json.loads(json.dumps(ledger.to_rows()))
    again = Ledger.from_rows(rows)
    assert again.to_rows() == ledger.to_rows()
    again.note([2], rejected=[(7, "keys")])
    assert again[7].rejected == {"keys": 2}


@pytest.mark.long
@pytest.mark.parametrize(
    ("attack", "least"),
    [("labelflip", 0.95), ("alie", 0.95), ("nonfinite", 1.0), ("fang", 0.95)],
)
def test_three_of_seventeen_are_told_on_digits(attack, least):
    """Far out, or too near: all three are found, with a false alarm at most."""
    root = Path(__file__).parents[2]
    config = FlowerApp(root).run_config()
    outcome = Tournament(str(root), config).run_match(Match("ctma(gm)", attack, 3, 1))
    assert outcome.auc >= least
    assert outcome.true_suspects == 3 and outcome.false_suspects <= 1


def test_a_look_at_a_node_that_was_never_asked_changes_nothing():
    ledger = Ledger()
    ledger.note([1, 2], distances=[1.0, 2.0])
    before = ledger.to_rows()
    assert ledger[7] == Record()
    assert ledger.to_rows() == before


@pytest.mark.parametrize("confidence", [0, 1, 1.5, float("nan")])
def test_a_confidence_that_is_none_is_named(confidence):
    with pytest.raises(ValueError, match="`confidence` should be between 0 and 1"):
        Ledger().suspects(confidence)
