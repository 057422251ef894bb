"""The ledger: counts, and that its suspicion means what it says."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.tournament import Match, Tournament
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
    }
    assert ledger[3].trimmed == 1 and ledger[3].rejected == {"keys": 1}
    assert ledger[4].rejected == {"shape": 2} and ledger[4].asked == 2
    assert ledger[5].missing == 2 and ledger[5].suspicion == 0.0


def test_heights_by_hand():
    """n = 5, f = 1: ranks 1 to 5 are heights 0, ⅛, ⅜, ⅝, ⅞, and depths from ⅞ to 0."""
    ledger = Ledger()
    ledger.note([1, 2, 3, 4, 5], distances=[3.0, 1.0, 5.0, 2.0, 4.0], f=1)
    assert [ledger[n].height for n in (2, 4, 1, 5, 3)] == [
        0,
        1 / 8,
        3 / 8,
        5 / 8,
        7 / 8,
    ]
    assert [8 * ledger[n].depth for n in (2, 4, 1, 5, 3)] == [7, 5, 3, 1, 0]
    ledger = Ledger()
    ledger.note([1, 2, 3], distances=[7.0, 7.0, 7.0], f=0)
    assert [ledger[n].height for n in (1, 2, 3)] == [0.5] * 3
    assert [ledger[n].depth for n in (1, 2, 3)] == [0.5] * 3


def test_suspicion_by_hand():
    """Ten rejected replies: ū = 1, so 2 exp(-2 · 10 · ¼)."""
    ledger = Ledger()
    for _ in range(10):
        ledger.note([], rejected=[(1, "shape")])
    assert ledger[1].suspicion == pytest.approx(5 / math.log(10) - math.log10(2))
    for _ in range(10):
        ledger.note([2], distances=[1.0], f=0)  # n = 1: u = v = ½
        ledger.note([3, 4, 5], distances=[1.0, 2.0, 3.0], f=1)  # v = ¾, u = ¼, u = ¾
    assert ledger[2].standing == ledger[9].standing == 0.0
    assert (
        ledger[3].standing == ledger[5].standing == pytest.approx(1.25 / math.log(10))
    )
    assert ledger[4].standing == pytest.approx(-1.25 / math.log(10))
    assert ledger[4].suspicion == 0.0


LIARS = {
    "near": lambda honest, rng: np.zeros(8),
    "far": lambda honest, rng: np.full(8, 99.0),
    "amid": lambda honest, rng: np.full(8, np.median(honest)),
    "mixed": lambda honest, rng: rng.choice([0.0, np.median(honest), 99.0], 8),
}


@pytest.mark.parametrize("lie", LIARS)
def test_honest_nodes_are_suspected_as_rarely_as_stated(lie):
    """Whatever 8 of 17 liars do: at most 1 honest node in 100 comes to 2."""
    rng = np.random.default_rng(3)
    high = total = 0
    for _ in range(60):
        ledger = Ledger()
        for _ in range(40):
            honest = rng.normal(1, 0.1, 9)
            distances = [*honest, *LIARS[lie](honest, rng)]
            ledger.note(range(17), distances=distances, f=8)
        scores = [ledger[node].suspicion for node in range(9)]
        high += sum(score >= 2 for score in scores)
        total += len(scores)
        assert not set(ledger.suspects()) & set(range(9))
    assert high <= total / 100


def test_liars_that_are_far_out_are_found():
    """5 of 17, in 60 rounds: all of them are suspects, and they come first."""
    rng, ledger = np.random.default_rng(0), Ledger()
    for _ in range(60):
        distances = [*rng.normal(1, 0.1, 12), *rng.normal(3, 0.1, 5)]
        ledger.note(range(17), distances=distances, f=5)
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
    """5 of 17 send the same, and the aggregate is near to it."""
    rng, ledger = np.random.default_rng(0), Ledger()
    for _ in range(60):
        distances = [*rng.normal(1, 0.1, 12), *[0.3] * 5]
        ledger.note(range(17), distances=distances, f=5)
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
    outcome = Tournament(str(root), config).run_match(
        Match("ctma(gm)", attack, 3, 1)
    )
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
