"""Every rule against its oracle and its golden row."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import (
    MDA,
    RULES,
    SMEA,
    CwMed,
    CwTM,
    GeometricMedian,
    SampledDnC,
)
from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.updates import Layer, Updates
from tests.helpers import oracles as o
from tests.helpers.table import (
    GOLDEN,
    REFERENCE,
    TABLE,
    distinct_mixtures,
    everyone,
    few,
    obeying,
    samples,
)

WEIGHTED = everyone(lambda rule: rule.weighted)
COUNTING = everyone(lambda rule: not rule.weighted and "ctma" not in rule.spec)


def close(found, expected, rule, x):
    digits = 1e-5 if rule.flat else 1e-10
    np.testing.assert_allclose(found, expected, atol=digits * max(1, np.abs(x).max()))


@pytest.mark.parametrize("rule", everyone())
def test_rule_gives_the_golden_result(rule):
    found = rule(GOLDEN, f=2, **rule.given(REFERENCE))
    np.testing.assert_allclose(found, rule.golden, atol=3e-6)


@pytest.mark.parametrize("rule", obeying("oracle"))
@few
@given(st.data())
def test_rule_equals_its_oracle(rule, data):
    x, f, reference = data.draw(samples(rule))
    given = rule.given(reference)
    close(rule(x, f, **given), rule.oracle(x, f, **given), rule, x)


@pytest.mark.parametrize("rule", WEIGHTED)
@few
@given(st.data(), st.floats(0, 0.45), st.integers(0, 99))
def test_weighted_rule_equals_its_oracle(rule, data, share, seed):
    """A share of the weight may be Byzantine; a count of f is a share of f/n."""
    x, f, reference = data.draw(samples(rule))
    weights = np.random.default_rng(seed).exponential(size=len(x))
    weights[0] *= seed % 2
    given = rule.given(reference) | {"weights": weights}
    close(rule(x, f, **given), rule.oracle(x, f, **given), rule, x)
    expected = rule.oracle(x, share * len(x), **given)
    close(rule(x, share, **given), expected, rule, x)


@pytest.mark.parametrize("rule", WEIGHTED)
@few
@given(st.data(), st.floats(0, 0.45))
def test_share_splits_the_row_on_the_boundary(rule, data, share):
    x, _, reference = data.draw(samples(rule))
    if "nnm" in rule.spec:
        assume(distinct_mixtures(x, share * len(x)) not in range(2, len(x) // 2 + 1))
    given = rule.given(reference)
    close(rule(x, share, **given), rule.oracle(x, share * len(x), **given), rule, x)


@pytest.mark.parametrize("rule", COUNTING)
def test_share_of_rows_is_rounded_up(rule):
    x = np.random.default_rng(0).standard_normal((11, 3))
    given = rule.given(np.ones(3))
    for share, f in ((0.0, 0), (0.01, 1), (1 / 11, 1), (0.1, 2), (2 / 11, 2)):
        assert math.ceil(share * 11 - 1e-9) == f
        np.testing.assert_array_equal(rule(x, share, **given), rule(x, f, **given))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("weights", [None, 1.0, 1e-9])
def test_cwtm_is_the_median_where_all_but_the_middle_is_trimmed(n, weights):
    x = np.random.default_rng(n).standard_normal((n, 5))
    given = None if weights is None else np.full(n, weights)
    for share in (0.5 - 1e-8, 0.5 - 1e-13, math.nextafter(0.5, 0)):
        found = CwTM()(x, f=share, weights=given)
        np.testing.assert_allclose(found, np.median(x, axis=0), atol=1e-6)


@few
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_geometric_median_on_a_line_is_the_median(n, seed):
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((n, 1)), rng.integers(0, 4, n) + (np.arange(n) < 1)
    line = np.array([[3.0, -4.0]])
    np.testing.assert_allclose(
        GeometricMedian()(x * line, f=0, weights=weights),
        CwMed()(x, f=0, weights=weights) * line[0],
        atol=1e-6,
    )


def test_geometric_median_does_not_stop_at_a_row_of_no_weight():
    """Of the two rows that tie the middle is the fourth, which counts nothing."""
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    found = GeometricMedian()(x, f=0, weights=[1, 1, 1, 0])
    np.testing.assert_allclose(found, [0.0, 1 / math.sqrt(3)], atol=1e-5)


@few
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e3, 1e8, 1e19]))
def test_geometric_median_is_a_minimum(seed, far):
    """No small step from it, and no row, is better, however far one row may be."""
    rng = np.random.default_rng(seed)
    n, d = rng.integers(3, 20), rng.integers(2, 6)
    x = rng.standard_normal((n, d))
    x[0] += far
    best = GeometricMedian()(x, f=1)
    r = np.linalg.norm(x - best, axis=1)
    if r.min() > 1e-4:
        gradient = ((best - x) / r[:, None]).mean(axis=0)
        assert np.linalg.norm(gradient) < 1e-5
    else:
        away = r > 1e-4
        pull = ((x - best)[away] / r[away, None]).sum(axis=0)
        assert np.linalg.norm(pull) <= np.sum(~away) + 1e-3


def deceptive(rng, n, f, d):
    """Rows with f liars far, near, or all alike; with ties; and pairs far apart."""
    x = rng.standard_normal((n, d))
    yield x
    yield np.vstack([10 * x[:f], x[f:]])
    yield np.vstack([x[f:].mean(axis=0) - 0.5 * x[f:].std(axis=0) + 0 * x[:f], x[f:]])
    yield np.round(x)
    yield x[rng.integers(0, n // 2, n)]
    yield np.vstack([np.eye(n)[:, :d] * 9, x])[rng.permutation(2 * n)[:n]]


@pytest.mark.parametrize(("n", "f"), [(5, 2), (9, 4), (12, 3), (13, 6)])
@pytest.mark.parametrize(
    ("spec", "measure"), [("mda", o.diameter), ("smea", o.spread)], ids=["mda", "smea"]
)
def test_exact_search_finds_the_best_subset(spec, measure, n, f):
    """Of equally good ones any may be found, so it is the measure that is compared."""
    rng = np.random.default_rng(n)
    for d in (1, 2, n):
        for x in deceptive(rng, n, f, d):
            influence = parse_aggregator(spec).aggregate(x, f=f).influence
            kept = np.flatnonzero(influence)
            assert len(kept) == n - f
            np.testing.assert_allclose(influence[kept], 1 / (n - f))
            best = measure(x[o.best_subset(x, f, measure)])
            assert measure(x[kept]) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_exact_search_ends_within_its_limit():
    """C(17, 8) = 24 310 subsets, C(60, 12) = 1.4e12: not one in a hundred is seen."""
    rng = np.random.default_rng(0)
    for n, f, limit in ((17, 8, 243), (60, 12, 2000)):
        for x in deceptive(rng, n, f, n):
            MDA(limit=limit)(x, f=f)
    for x in deceptive(rng, 17, 8, 17):
        found = SMEA().aggregate(x, f=8).influence
        greedy = parse_aggregator("dnc").aggregate(x, f=8).influence
        assert o.spread(x[found > 0]) <= o.spread(x[greedy > 0]) * (1 + 1e-9)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.1, 2.5])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_sampled_dnc_is_algorithm_2_in_layers_too(iterations, factor):
    """With 20 subsets no row passes all, and those that pass most count."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((21, 60))
    x[:7] += 0.5
    given = {"subset": 9, "iterations": iterations, "factor": factor, "seed": 3}
    rule = SampledDnC(**given)
    expected = o.sampled_dnc(x, 7, **given)
    np.testing.assert_allclose(rule(x, f=7), expected, atol=1e-12)
    rows = Updates.of([Layer(x[:, :4]), Layer(list(x[:, 4:5])), Layer(x[:, 5:])])
    found = rule(rows, f=7)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-12)
    other = SampledDnC(**given | {"seed": 4})(x, f=7)
    assert (rule(x, f=7) == rule(x, f=7)).all()
    assert (rule(x, f=7) != other).any()


def test_sampled_dnc_reads_each_row_of_the_stack_once(monkeypatch):
    """Mixed rows are as many sums of all rows, n² d if each is computed whole."""
    rng = np.random.default_rng(0)
    x, mixing = rng.standard_normal((20, 30)), rng.random((20, 20))
    rows, rule, read = Updates.of(x), SampledDnC(subset=10, iterations=3), []
    combine = CpuStack.combine

    def counted(stack, coefficients):
        read.append(np.count_nonzero(coefficients))
        return combine(stack, coefficients)

    monkeypatch.setattr(CpuStack, "combine", counted)
    (found,) = rule(rows.mix(mixing), f=4)
    assert sorted(read)[:-1] == [0] + [1] * 20
    np.testing.assert_allclose(found, rule(mixing @ x, f=4), rtol=1e-9)


def test_sampled_dnc_counts_failing_rows_without_rounding_errors():
    """In floats 2.2 · 25 is more than 55."""
    assert SampledDnC(factor=2.2).min_rows(25) == 56
    with pytest.raises(ValueError, match="at most 9 for sampleddnc"):
        SampledDnC(factor=2.2).check(n=22, f=10)


@pytest.mark.parametrize(
    "given", [{"subset": 0}, {"iterations": 0}, {"factor": 0.0}, {"seed": -1}]
)
def test_sampled_dnc_refuses_a_parameter_out_of_range(given):
    with pytest.raises(ValueError, match=f"Parameter `{next(iter(given))}`"):
        SampledDnC(**given)


def test_mda_drops_a_thousand_distant_rows():
    x = np.r_[np.zeros(1101), np.arange(1.0, 1101.0)][:, None]
    assert MDA()(x, f=1100) == 0


@few
@given(st.integers(0, 10**6), st.booleans())
def test_monna_with_a_reference_keeps_the_clients_nearest_to_it(seed, weighted):
    rng = np.random.default_rng(seed)
    x, reference = rng.standard_normal((9, 4)), rng.standard_normal(4)
    weights = rng.integers(1, 4, 9) if weighted else None
    apart = np.linalg.norm(x - reference, axis=1)
    expected = o.kept(apart, 3, o.uniform(x, weights)) @ x
    found = parse_aggregator("monna")(x, f=3, weights=weights, reference=reference)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_bucketing_with_equal_seeds_gives_equal_results():
    x = np.random.default_rng(0).standard_normal((9, 3))
    one, same, other = (
        parse_aggregator(f"bucketing(cwmed, size=2, seed={seed})")(x, f=1)
        for seed in (1, 1, 2)
    )
    assert (one == same).all() and (one != other).any()


def test_mda_with_asymmetric_rounded_distances_is_finite():
    """Of identical rows, mixed, the distance there may not be the distance back."""
    rule = parse_aggregator("nnm(mda)")
    for seed in range(60):
        x = np.random.default_rng(seed).normal(size=(9, 40)).astype(np.float32)
        x[5:] = -0.5 * x[:5].mean(axis=0)
        assert np.isfinite(rule(x, f=4)).all()


def test_ctma_and_nnm_do_not_commute():
    """CTMA around NNM trims raw rows; NNM before CTMA trims mixed ones."""
    raw, mixed = (
        parse_aggregator(spec).aggregate(GOLDEN, f=2)
        for spec in ("ctma(nnm(cwmed))", "nnm(ctma(cwmed))")
    )
    assert sorted(set(raw.influence.round(9))) == [0, round(1 / 9, 9)]
    assert len(set(mixed.influence.round(9))) > 2


def test_table_has_every_rule():
    """A rule without a line here is a rule without a test."""
    assert {rule.spec.partition("(")[0] for rule in TABLE} == set(RULES)


def test_golden_results_of_rules_differ():
    assert len({rule.golden for rule in TABLE}) > len(TABLE) / 2
    assert o.diameter(GOLDEN[:9]) < o.diameter(GOLDEN)
