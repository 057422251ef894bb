"""Detectors of one's own, and exclusion with an appeal."""

import pytest

from flwr_ctma.tracking.detectors import Detector, Exclusion, Observation
from flwr_ctma.tracking.ledger import Ledger


def seen(*rejected, accepted=(1, 2, 3)):
    return Observation(accepted, rejected=[(node, "shape") for node in rejected])


def test_the_ledger_is_a_detector():
    ledger = Ledger()
    assert isinstance(ledger, Detector)
    verdicts = ledger.judge(Observation([1, 2], rejected=[(3, "header")], missing=[4]))
    assert verdicts == {1: False, 2: False, 3: True, 4: False}
    again = Ledger()
    again.load_state_dict(ledger.state_dict())
    assert again.to_rows() == ledger.to_rows()


def test_nodes_are_excluded_by_rejections_for_good():
    exclusion = Exclusion(max_rejections=2)
    exclusion.enter(seen(7), {})
    assert exclusion.nodes == []
    exclusion.enter(seen(7, 8), {})
    for _ in range(9):
        exclusion.enter(seen(), {})
    assert exclusion.nodes == [7]


def test_replies_that_prove_nothing_exclude_nobody():
    exclusion = Exclusion(max_rejections=1)
    exclusion.enter(Observation([1], rejected=[(2, "weight"), (3, "own reason")]), {})
    assert exclusion.nodes == []


@pytest.mark.parametrize("by_verdict", [False, True])
def test_verdicts_exclude_only_if_they_are_asked_to(by_verdict):
    exclusion = Exclusion(by_verdict=by_verdict)
    exclusion.enter(seen(), {1: False, 2: True})
    assert exclusion.nodes == ([2] if by_verdict else [])


def test_an_appeal_that_fails_renews_the_exclusion():
    exclusion = Exclusion(max_rejections=2, appeal_after=3)
    exclusion.enter(seen(7), {})
    exclusion.enter(seen(7), {})
    out = []
    for _ in range(2):
        for _ in range(3):
            out.append(exclusion.nodes)
            exclusion.enter(seen(), {})
        out.append(exclusion.nodes)
        exclusion.enter(seen(7), {})
    assert out == [[7], [7], [7], [], [7], [7], [7], []]
    assert exclusion.nodes == [7]


def test_an_appeal_that_succeeds_starts_anew():
    exclusion = Exclusion(max_rejections=2, by_verdict=True, appeal_after=1)
    exclusion.enter(seen(7), {})
    exclusion.enter(seen(7), {})
    assert exclusion.nodes == [7]
    exclusion.enter(seen(), {})
    exclusion.enter(seen(accepted=(1, 2, 3, 7)), {7: False})
    exclusion.enter(seen(7), {})
    assert exclusion.nodes == []
    exclusion.enter(seen(7), {})
    assert exclusion.nodes == [7]


def test_an_appeal_without_a_reply_stays_open():
    exclusion = Exclusion(max_rejections=1, appeal_after=1)
    exclusion.enter(seen(7), {})
    for _ in range(3):
        exclusion.enter(seen(), {})
        assert exclusion.nodes == []
    exclusion.enter(seen(7), {})
    assert exclusion.nodes == [7]


def test_a_restored_exclusion_knows_who_is_excluded():
    exclusion, again = (Exclusion(max_rejections=1, appeal_after=2) for _ in "ab")
    exclusion.enter(seen(7), {})
    again.load_state_dict(exclusion.state_dict())
    assert again.nodes == [7]
    again.enter(seen(), {})
    again.enter(seen(), {})
    assert again.nodes == []


@pytest.mark.parametrize("name", ["max_rejections", "appeal_after"])
def test_a_number_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"Parameter `{name}`"):
        Exclusion(**{name: 0})
