"""Hierarchical aggregation: the bound on lost groups, and what follows from it."""

from fractions import Fraction
from itertools import pairwise
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import CTMA, CwMed, Hierarchical
from flwr_ctma.aggregators.grouping import chance_of_loss, levels
from flwr_ctma.engine.updates import Updates
from flwr_ctma.strategy.guarantee import guarantee


def sizes_of(n, m):
    return [n // m + (j < n % m) for j in range(m)]


def exact(n, b, m, k):
    """Probability of x lost groups for x = 0, …, m: every way to place b among n.

    The coefficient of y^x z^b in the product over groups of Σ_i C(s, i) z^i y^[i > k].
    """
    ways = {(0, 0): 1}
    for s in sizes_of(n, m):
        more = {}
        for (lost, placed), count in ways.items():
            for i in range(min(s, b - placed) + 1):
                key = lost + (i > k), placed + i
                more[key] = more.get(key, 0) + count * comb(s, i)
        ways = more
    return [Fraction(ways.get((x, b), 0), comb(n, b)) for x in range(m + 1)]


def deal(rng, n, b, m):
    """Byzantine rows of each group in a draw."""
    groups = np.array_split(rng.permutation(n), m)
    return np.array([(group < b).sum() for group in groups])


@pytest.mark.parametrize(
    ("n", "m"), [(6, 2), (9, 3), (10, 3), (12, 4), (20, 5), (23, 4), (30, 10), (40, 8)]
)
def test_bound_is_above_the_exact_probability(n, m):
    for b in range(1, n // 2):
        for k in range(n // m):
            tails = np.cumsum([float(p) for p in exact(n, b, m, k)[::-1]])[::-1]
            for lost in range(m):
                bound = chance_of_loss(n, b, m, k, lost)
                assert tails[lost + 1] <= bound * (1 + 1e-12), (b, k, lost)
                assert bound <= 1


def test_bound_is_within_200_times_the_exact_probability():
    """For 1000 rows, 100 of them Byzantine, in 15 groups: within a factor of 200."""
    tails = np.cumsum([float(p) for p in exact(1000, 100, 15, 13)[::-1]])[::-1]
    for lost in (0, 1, 2):
        bound = chance_of_loss(1000, 100, 15, 13, lost)
        assert tails[lost + 1] <= bound <= 200 * tails[lost + 1]


def test_exact_probabilities_equal_drawn_frequencies():
    """The instrument itself."""
    rng = np.random.default_rng(0)
    lost = [(deal(rng, 23, 6, 4) > 2).sum() for _ in range(4000)]
    found = np.bincount(lost, minlength=5) / 4000
    np.testing.assert_allclose(found, np.array(exact(23, 6, 4, 2), float), atol=0.03)


@pytest.mark.parametrize(("n", "b"), [(400, 60), (1000, 100), (1000, 250), (3000, 900)])
def test_draws_lose_no_more_groups_than_stated(n, b):
    """At a failure of 5 %, so that failures can be seen if there are more."""
    found = levels(n, b, 64, failure=0.05)
    rng = np.random.default_rng(1)
    draws = [deal(rng, n, b, found.groups) for _ in range(1000)]
    lost = [(inside > found.within).sum() for inside in draws]
    assert np.mean(np.array(lost) > found.across) <= 0.05
    assert chance_of_loss(n, b, found.groups, found.within, found.across) <= 0.05


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 63, 100])
def test_below_a_quarter_no_placement_loses_more_groups_than_stated(size):
    """Who places b rows gives k + 1 to as many groups as that is enough for."""
    n = 500
    for b in (1, 5, 40, 90, 124):
        found = levels(n, b, size, failure=0.0)
        if found is None:
            assert size < 3 or b > n / 4 * (1 - 1 / size), "else there is one"
            continue
        assert 2 * found.within < found.size and 2 * found.across < found.groups
        assert b // (found.within + 1) <= found.across


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.floats(0, 0.49), st.sampled_from([1e-9, 1e-6, 1e-2]))
def test_levels_finds_a_group_size_for_every_minority(n, share, failure):
    b = min(int(share * n), (n - 1) // 2)
    found = levels(n, b, None, failure)
    assert found.margin >= 0.5 * (1 - 2 * b / n)
    assert chance_of_loss(n, b, found.groups, found.within, found.across) <= failure
    assert found.groups * found.size <= n < found.groups * (found.size + 1)


def attacks(rng, honest, b):
    """What b rows do to the honest ones."""
    middle, spread = honest.mean(axis=0), honest.std(axis=0)
    same = np.ones((b, 1))
    yield 1e6 * rng.standard_normal((b, honest.shape[1]))
    yield same * (middle + 3 * spread)
    yield same * (middle - 1.2 * spread)
    yield same * -middle
    yield np.repeat(honest[:1], b, axis=0)
    yield same * (middle + 20 * rng.standard_normal(honest.shape[1]))


@pytest.mark.parametrize(
    "spec", ["ctma(gm)", "cwmed", "cwtm, ctma(gm)", "nnm(cwtm), cwmed"]
)
@pytest.mark.parametrize(("n", "b", "size"), [(60, 9, 12), (200, 20, 25), (70, 17, 7)])
def test_error_under_attacks_is_within_kappa(spec, n, b, size):
    for seed in range(6):
        rule = parse_aggregator(f"hierarchical({spec}, size={size}, seed={seed})")
        limit = rule.kappa(n, b)
        rng = np.random.default_rng(100 + seed)
        honest = 1 + rng.standard_normal((n - b, 3)) * [1, 5, 0.1]
        variance = ((honest - honest.mean(axis=0)) ** 2).sum(axis=1).mean()
        for lies in attacks(rng, honest, b):
            x = np.vstack([honest, lies])[rng.permutation(n)]
            error = ((rule(x, f=b) - honest.mean(axis=0)) ** 2).sum()
            assert error <= limit * variance


def test_kappa_is_the_product_of_both_levels():
    """Three groups of three, one Byzantine row in each but one group."""
    rule = parse_aggregator("hierarchical(cwtm, cwmed, size=3)")
    assert levels(9, 2, 3, 1e-6).within == levels(9, 2, 3, 1e-6).across == 1
    within, across = 6 * 1 / 1 * (1 + 1 / 1), 4 * (1 + 1 / 1) ** 2
    assert rule.kappa(9, 2) == pytest.approx((1 + within) * (1 + across) * 7 / 4)
    assert rule.kappa(8, 2) is None
    assert parse_aggregator("hierarchical(cge, cwmed, size=3)").kappa(9, 2) is None
    assert parse_aggregator("hierarchical(cwmed, cge, size=3)").kappa(9, 2) is None
    assert parse_aggregator("hierarchical(cwmed)").kappa(17, 3) == CwMed().kappa(17, 3)


def test_guarantee_states_the_chance_of_failure():
    rule = parse_aggregator("ctma(hierarchical(ctma(gm), failure=1e-4))")
    told = guarantee(rule, n=1000, f=100)
    assert f"at most {rule.kappa(1000, 100):.1f} times" in told
    assert told.endswith("but for a chance of 0.0001 in each round")
    assert "chance" not in guarantee(CTMA(CwMed()), n=1000, f=100)


def test_few_rows_are_one_group():
    x = np.random.default_rng(0).standard_normal((100, 7))
    found = parse_aggregator("hierarchical(ctma(gm))")(x, f=10)
    np.testing.assert_array_equal(found, parse_aggregator("ctma(gm)")(x, f=10))


def test_groups_without_a_seed_are_drawn_anew():
    x = np.random.default_rng(0).standard_normal((30, 5))
    free, fixed = (
        parse_aggregator(f"hierarchical(ctma(cwmed), size=10{seed})")
        for seed in ("", ", seed=7")
    )
    assert len({free(x, f=2).tobytes() for _ in range(5)}) > 1
    assert len({fixed(x, f=2).tobytes() for _ in range(3)}) == 1


def test_nested_and_referenced_rules_equal_their_oracles():
    """Mixed rows, rows beside a reference, and columns within and across."""
    rng = np.random.default_rng(3)
    x, start = rng.standard_normal((24, 6)), rng.standard_normal(6)
    for spec, more in [
        ("nnm(hierarchical(cwmed, size=8, seed=0))", {}),
        ("bucketing(hierarchical(cwmed, cwtm, size=4, seed=0), size=2)", {}),
        ("hierarchical(cclip, size=8, seed=0)", {"reference": start}),
        ("hierarchical(cclip, cwmed, size=8, seed=0)", {"reference": start}),
        ("hierarchical(hierarchical(ctma(gm), size=4, seed=1), size=12, seed=0)", {}),
    ]:
        rule = parse_aggregator(spec)
        found = rule.aggregate(x, 2, **more)
        np.testing.assert_allclose(found.vector, rule(x, 2, **more), atol=1e-12)
        apart = np.linalg.norm(x - found.vector, axis=1)
        np.testing.assert_allclose(found.distances, apart, atol=1e-9)
        assert found.influence.shape == (24,)
        assert np.abs(found.vector - x[2:].mean(axis=0)).max() < 2


def test_bfloat16_tensors_stay_bfloat16():
    x = torch.randn(24, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    for spec, digits in [("ctma(gm)", 1e-6), ("cwtm, cwmed", 1e-7)]:
        rule = parse_aggregator(f"hierarchical({spec}, size=8, seed=0)")
        found, exact = rule(x, f=2), rule(x.double(), f=2)
        assert found.dtype == torch.bfloat16
        assert torch.allclose(found.double(), exact.double(), atol=digits + 2**-8)


def test_hierarchical_makes_no_gram_matrix_of_all_rows():
    x = np.random.default_rng(0).standard_normal((600, 40))
    for rule in (
        Hierarchical(CTMA(CwMed()), size=20, seed=0),
        CTMA(parse_aggregator("hierarchical(ctma(gm), size=20, seed=0)")),
    ):
        rows = Updates.of(x)
        rule.aggregate(rows, f=60)
        assert not rows.stack.has_moments


def test_group_clipped_to_zero_gives_zero():
    """Most rows are zero, so ARC shortens the others to zero times themselves."""
    x = np.zeros((24, 5))
    x[:3] = np.arange(1.0, 4.0)[:, None]
    rule = parse_aggregator(
        "arc(hierarchical(ctma(cwmed), size=1, failure=0.9, seed=0))"
    )
    found = rule.aggregate(x, f=2)
    assert (found.vector == 0).all() and found.influence.sum() <= 1


def test_invalid_weights_and_parameters_are_refused():
    x = np.zeros((100, 2))
    rule = parse_aggregator("hierarchical(ctma(gm), size=10)")
    for call, name in [
        (lambda: rule(x, f=30), "size"),
        (lambda: rule(x, f=2, weights=np.ones(100)), "weights"),
        (lambda: Hierarchical(CwMed(), size=0), "size"),
        (lambda: Hierarchical(CwMed(), failure=1.0), "failure"),
        (lambda: Hierarchical(CwMed(), failure=-1e-9), "failure"),
        (lambda: Hierarchical(CwMed(), seed=-1), "seed"),
    ]:
        with pytest.raises(ValueError, match=f"Parameter `{name}` should be"):
            call()


def test_margin_grows_with_the_allowed_failure():
    found = [levels(10_000, 2000, 64, p).margin for p in (1e-12, 1e-6, 1e-2, 0.5)]
    assert all(a <= b for a, b in pairwise(found))
