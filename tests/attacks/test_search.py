"""Attacks that search against the rule in use."""

import itertools

import numpy as np
import pytest

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import CTMA, CwMed, Mean
from flwr_ctma.attacks import (
    ALIE,
    IPM,
    PGA,
    SCM,
    Adaptive,
    FilterEvasion,
    Knowledge,
    OptimalALIE,
    OptimalIPM,
    TrimEvasion,
)
from flwr_ctma.attacks.search import Search

N = 17


def rng():
    return np.random.default_rng(0)


def normal(h, d=100, seed=0):
    return 0.2 + np.random.default_rng(seed).normal(size=(h, d))


def shift(rule, honest, attack, f):
    """Return by how much the attack moves the rule from the honest mean."""
    sent = attack.against(rule, f)(honest, f, rng())
    output = rule(np.vstack([honest, sent]), f=f)
    return np.linalg.norm(output - honest.mean(axis=0))


@pytest.mark.parametrize("f", [3, 5, 8])
@pytest.mark.parametrize(
    ("rule", "attack"),
    [
        ("ctma(gm)", TrimEvasion()),
        ("ctma(cwmed)", TrimEvasion()),
        ("caf", FilterEvasion()),
        ("nnm(gm)", Adaptive()),
        ("gm", Adaptive()),
    ],
    ids=str,
)
def test_aimed_attacks_move_their_rule_farther_than_ipm_and_alie_do(rule, attack, f):
    """Whatever factor these have: the optimal ones are the best of each."""
    rule = parse_aggregator(rule)
    others = [IPM(), ALIE(), OptimalIPM(), OptimalALIE()]
    for seed in range(2):
        honest = normal(N - f, seed=seed)
        best = max(shift(rule, honest, other, f) for other in others)
        assert shift(rule, honest, attack, f) > (0.99 if f == 8 else 1.05) * best


def test_trim_evasion_makes_ctma_trim_the_opposite_honest_rows():
    honest, f = normal(12), 5
    rule = parse_aggregator("ctma(gm)")
    sent = TrimEvasion().against(rule, f)(honest, f, rng())
    influence = rule.aggregate(np.vstack([honest, sent]), f=f).influence
    trimmed = influence[: len(honest)] == 0
    assert trimmed.sum() == f
    assert (influence[len(honest) :] > 0).all()
    centred, lie = honest - honest.mean(axis=0), sent[0] - honest.mean(axis=0)
    along = centred @ lie
    assert along[trimmed].max() < 0
    # The identity that the derivation begins with.
    output = rule(np.vstack([honest, sent]), f=f) - honest.mean(axis=0)
    expected = (f * lie - centred[trimmed].sum(axis=0)) / len(honest)
    np.testing.assert_allclose(output, expected)


def test_filter_evasion_makes_caf_filter_honest_weight():
    """After the filter, colluders have more than their 8/17 of the weight."""
    honest, f = normal(9), 8
    rule = parse_aggregator("caf")
    sent = FilterEvasion().against(rule, f)(honest, f, rng())
    influence = rule.aggregate(np.vstack([honest, sent]), f=f).influence
    assert influence[9:].sum() > 0.6
    alie = ALIE()(honest, f)
    influence = rule.aggregate(np.vstack([honest, alie]), f=f).influence
    assert influence[9:].sum() < 0.6


def test_first_step_of_caf_spares_colluders_below_the_derived_bound():
    """r < b/(1 − 2p): an honest row has the largest τ, and colluders keep weight."""
    honest, f = normal(12), 5
    known = Knowledge(honest, np.zeros((f, 100)), rng())
    v = Search(known, Mean(), 0, 1).principal[0]
    v = v / np.linalg.norm(v)
    b = (-(honest - honest.mean(axis=0)) @ v).max()
    bound = b / (1 - 2 * f / N)
    for r, spared in ((0.95 * bound, True), (1.05 * bound, False)):
        rows = np.vstack([honest, np.tile(honest.mean(axis=0) + r * v, (f, 1))])
        centred = rows - rows.mean(axis=0)
        top = np.linalg.svd(centred)[2][0]
        assert abs(top @ v) > 0.9
        tau = (centred @ v) ** 2
        assert (tau[:12].max() > tau[12:].max()) == spared


@pytest.mark.parametrize("objective", ["distance", "descent"])
def test_adaptive_against_a_grid_of_directions_in_the_plane(objective):
    rule, honest, f = CTMA(CwMed()), normal(7, 2, seed=3), 2
    mean = honest.mean(axis=0)

    def score(row):
        output = rule(np.vstack([honest, np.tile(row, (f, 1))]), f=f)
        if objective == "distance":
            return np.linalg.norm(output - mean)
        return -(output @ mean) / np.linalg.norm(mean)

    angles, radii = np.linspace(0, 2 * np.pi, 60), np.geomspace(1 / 8, 8, 60)
    best = max(
        score(mean + r * np.array([np.cos(a), np.sin(a)]))
        for a, r in itertools.product(angles, radii)
    )
    attack = Adaptive(evaluations=20, steps=5, objective=objective)
    sent = attack.against(rule, f)(honest, f, rng())
    assert score(sent[0]) >= 0.9 * best


def test_descent_does_more_harm_along_the_mean_than_distance_does():
    rule, honest, f = parse_aggregator("ctma(gm)"), normal(12), 5
    mean = honest.mean(axis=0)

    def along(objective):
        attack = Adaptive(objective=objective).against(rule, f)
        rows = np.vstack([honest, attack(honest, f, rng())])
        return rule(rows, f=f) @ mean

    assert along("descent") < along("distance")


def test_principal_directions_are_those_of_a_singular_value_decomposition():
    honest = normal(6, 9)
    known = Knowledge(honest, honest[:1], rng())
    centred = honest - honest.mean(axis=0)
    expected = np.linalg.svd(centred, full_matrices=False)[2]
    found = Search(known, Mean(), 0, 1).principal
    assert len(found) == 5
    for direction, right in zip(found, expected, strict=False):
        assert np.linalg.norm(direction) == pytest.approx(known.spread)
        assert abs(direction @ right) == pytest.approx(known.spread)


def test_scm_maximises_the_sensitivity_curve_along_its_signs():
    rule, honest, f = parse_aggregator("gm"), normal(8, 20), 3
    attack, memory = SCM(evaluations=40), {}
    known = Knowledge(honest, honest[:f], rng(), memory=memory)
    sent = attack.against(rule, f).collude(known)[0]
    clean = rule(honest, f=0)
    signs = memory[str(attack)]["signs"]
    direction = honest.std(axis=0) * signs
    np.testing.assert_allclose(
        (sent - clean) / (sent - clean)[0], direction / direction[0], rtol=1e-6
    )

    def curve(row):
        rows = np.vstack([honest, np.tile(row, (f, 1))])
        return np.linalg.norm(rule(rows, f=f) - clean)

    line = [curve(clean + g * direction) for g in np.geomspace(1 / 64, 64, 200)]
    assert curve(sent) >= 0.995 * max(line)
    again = attack.against(rule, f).collude(
        Knowledge(honest, honest[:f], np.random.default_rng(9), memory=memory)
    )
    np.testing.assert_array_equal(again[0], sent)  # the signs are kept


def test_pga_is_the_opposite_of_the_attackers_own_mean_on_a_sphere():
    honest, own = normal(8, 20), normal(3, 20, seed=5)
    known = Knowledge(honest, own, rng())
    attack = PGA(evaluations=7).against(parse_aggregator("gm"), 3)
    sent = attack.collude(known)
    mean = own.mean(axis=0)
    cosine = sent[0] @ mean / np.linalg.norm(sent[0]) / np.linalg.norm(mean)
    assert cosine == pytest.approx(-1)
    tau = np.mean([np.linalg.norm(row) for row in honest])
    gamma = np.linalg.norm(sent[0]) / tau
    assert np.log2(gamma) == pytest.approx(round(np.log2(gamma)))  # a power of 4


def test_trim_evasion_starts_against_the_rows_along_the_mean_by_hand():
    """The two rows with the largest component along μ, one of them with weight 3."""
    honest = normal(6, 20)
    mean = np.average(honest, axis=0, weights=[1, 1, 3, 1, 1, 1])
    weights = np.array([1.0, 1, 3, 1, 1, 1, 2, 1])
    known = Knowledge(honest, np.zeros((2, 20)), rng(), weights)
    first = next(iter(TrimEvasion().directions(Search(known, Mean(), 0, 1))))
    left, expected = 3.0, np.zeros(20)
    for i in sorted(range(6), key=lambda i: -(honest[i] - mean) @ mean):
        taken = min(left, weights[i])
        expected -= taken * (honest[i] - mean)
        left -= taken
    np.testing.assert_allclose(first, expected, atol=1e-9)


@pytest.mark.parametrize("attack", [Adaptive(), SCM(), PGA(), TrimEvasion()], ids=str)
@pytest.mark.parametrize("rule", ["fltrust", "zeno(cwmed)", "cclip(radius=2.0)"])
def test_rule_is_searched_with_its_reference(rule, attack):
    """The lie moves the rule farther from the honest mean than that mean does."""
    rule, honest = parse_aggregator(rule), normal(12)
    reference = normal(1, seed=9)[0]

    def moved(sent):
        rows = np.vstack([honest, sent])
        output = rule(rows, f=5, reference=reference)
        return np.linalg.norm(output - honest.mean(axis=0))

    sent = attack.against(rule, 5)(honest, 5, rng(), reference=reference)
    assert moved(sent) > moved(np.tile(honest.mean(axis=0), (5, 1)))
