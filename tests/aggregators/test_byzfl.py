"""ByzFL 0.0.11 beside this library: the same where definitions agree, listed where not.

Same results: Average (mean), Median (cwmed), TrMean (cwtm), Meamed (meamed), MoNNA, NNM
and ARC before any of them, CenteredClipping's first call (cclip), and MDA where one
subset is the smallest. Differences, each with what it costs and a test below:

1.  Krum and MultiKrum sum n − f − 1 distances, in the paper it is n − f − 2, and accept
    n < 2f + 3: 59 and 88 of 1000 Gaussian samples (17 rows, f = 4, d = 10) are chosen
    differently.
2.  GeometricMedian is three Weiszfeld steps from zero, distances below 0.1 taken as
    0.1: 4.14 for rows 4, 4, 4, 100 whose median is 4. Rows moved by 100 move it by
    99.98 to 100.01, and rows divided by 1000 have another median.
3.  CAF takes one step of power iteration, from a random start of the global generator,
    for the top eigenvector: two calls on the same nine rows differ by 1.56.
4.  SMEA does the same for each subset: in 191 of 200 samples (9 rows, f = 3, d = 5) it
    takes another subset than the best, of 1.75 times its eigenvalue on average.
5.  Of subsets with the same diameter MDA takes the first, here it is the first found:
    either has the smallest diameter.
6.  Bucketing draws from the global generator; here the seed is a parameter. Its s may
    be so large that no majority of buckets is honest.
7.  ARC and Clipping write into the rows they are given.
8.  CenteredClipping keeps its last output, so that a second call on the same rows gives
    another result; a start cannot be given: any `m` is a TypeError.
9.  Tensors are cast to float32 and stay so: the dtype of the result is not that of the
    rows.
10. Rows with NaN pass: Krum returns the very row that has one, the median has NaN in
    that coordinate, the geometric median in all. Here it is a ValueError that names it.
11. Distances of more than 25 tensors come from float32 norms (`torch.cdist`): of models
    that differ by 1e-5 they are wrong by up to 92 times their size. Here to 1e-6.
12. f is a count; rows have no weights; no rule says who counted how much.
"""

import numpy as np
import pytest
import torch

from flwr_ctma import parse_aggregator
from tests.helpers import oracles as o

try:
    import byzfl
except Exception as error:  # its torchvision must fit torch, which raises all sorts
    pytest.skip(f"byzfl does not import: {error}", allow_module_level=True)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


class First:
    """A pre-aggregator, then a rule."""

    def __init__(self, before, rule):
        self.before, self.rule = before, rule

    def __call__(self, x):
        return self.rule(self.before(x))


SAME = {
    "mean": lambda f: byzfl.Average(),
    "cwmed": lambda f: byzfl.Median(),
    "cwtm": lambda f: byzfl.TrMean(f=f),
    "meamed": lambda f: byzfl.Meamed(f=f),
    "monna": lambda f: byzfl.MoNNA(f=f),
    "monna(pivot=2)": lambda f: byzfl.MoNNA(f=f, idx=2),
    "cclip(radius=2, steps=3)": lambda f: byzfl.CenteredClipping(L=3, tau=2.0),
    "nnm(mean)": lambda f: First(byzfl.NNM(f=f), byzfl.Average()),
    "nnm(cwmed)": lambda f: First(byzfl.NNM(f=f), byzfl.Median()),
    "nnm(cwtm)": lambda f: First(byzfl.NNM(f=f), byzfl.TrMean(f=f)),
    "arc(mean)": lambda f: First(byzfl.ARC(f=f), byzfl.Average()),
    "arc(cwmed)": lambda f: First(byzfl.ARC(f=f), byzfl.Median()),
    "bucketing(cwmed, size=1)": lambda f: First(byzfl.Bucketing(s=1), byzfl.Median()),
}


@pytest.mark.parametrize("spec", SAME)
def test_rule_equals_byzfl_where_definitions_agree(spec):
    rule = parse_aggregator(spec)
    for seed in range(20):
        n = 5 + seed % 8
        f = seed % ((n + 1) // 2)
        x = normal(n, 6, seed)
        np.testing.assert_allclose(rule(x, f=f), SAME[spec](f)(x.copy()), atol=1e-12)
        tensor = SAME[spec](f)(torch.tensor(x))
        np.testing.assert_allclose(rule(x, f=f), tensor.numpy(), atol=1e-5)


def test_5_mda_has_the_same_diameter():
    """5: and the same diameter in any case."""
    same = 0
    for seed in range(30):
        x = normal(8, 4, seed)
        theirs = byzfl.MDA(f=2)(x)
        ours = parse_aggregator("mda").aggregate(x, f=2)
        kept = x[ours.influence > 0]
        subsets = [list(s) for s in o.combinations(range(8), 6)]
        nearest = min(subsets, key=lambda s: np.linalg.norm(x[s].mean(0) - theirs))
        assert o.diameter(x[nearest]) == pytest.approx(o.diameter(kept))
        same += np.allclose(theirs, ours.vector)
    assert 10 < same < 30


def test_1_krum_counts_one_neighbour_more():
    for spec, theirs, times in (
        ("krum", byzfl.Krum(f=4), 59),
        ("multikrum", byzfl.MultiKrum(f=4), 88),
    ):
        rule = parse_aggregator(spec)
        samples = [normal(17, 10, seed) for seed in range(1000)]
        differ = [not np.allclose(rule(x, f=4), theirs(x)) for x in samples]
        assert sum(differ) == times
    byzfl.Krum(f=2)(normal(5, 2))
    with pytest.raises(ValueError, match="`f` should be at most"):
        parse_aggregator("krum")(normal(5, 2), f=2)


def test_2_geometric_median_stops_after_three_steps():
    theirs, ours = byzfl.GeometricMedian(), parse_aggregator("gm")
    x = np.array([[4.0], [4.0], [4.0], [100.0]])
    assert theirs(x) == pytest.approx(4.14, abs=5e-3)
    assert ours(x, f=1) == pytest.approx(4)
    x = normal(9, 3)
    moved = theirs(x + 100) - theirs(x)
    assert moved == pytest.approx([99.99, 100.01, 99.98], abs=6e-3)
    assert ours(x + 100, f=2) - ours(x, f=2) == pytest.approx(100, abs=1e-5)
    assert np.abs(1000 * theirs(x / 1000) - theirs(x)).max() > 0.1


def test_3_caf_is_random():
    x = normal(9, 5)
    x[:2] += 3
    results = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002
        results.append(byzfl.CAF(f=2)(x))
    assert np.linalg.norm(results[0] - results[1]) == pytest.approx(1.56, abs=5e-3)


def test_4_smea_misses_the_best_subset():
    subsets = [list(s) for s in o.combinations(range(9), 6)]
    ratios = []
    for seed in range(200):
        x = normal(9, 5, seed)
        np.random.seed(seed)  # noqa: NPY002
        theirs = byzfl.SMEA(f=3)(x)
        taken = min(subsets, key=lambda s: np.linalg.norm(x[s].mean(axis=0) - theirs))
        kept = parse_aggregator("smea").aggregate(x, f=3).influence > 0
        ratios.append(o.spread(x[taken]) / o.spread(x[kept]))
    assert min(ratios) > 1 - 1e-9
    assert sum(ratio > 1 + 1e-9 for ratio in ratios) == 191
    assert np.mean(ratios) == pytest.approx(1.75, abs=5e-3)


def test_6_bucketing_draws_from_the_global_generator():
    x, both = normal(9, 3), First(byzfl.Bucketing(s=2), byzfl.Median())
    np.random.seed(0)  # noqa: NPY002
    assert not np.allclose(both(x), both(x))
    byzfl.Bucketing(s=9)(x)
    with pytest.raises(ValueError, match="`size` should be such that"):
        parse_aggregator("bucketing(cwmed, size=3)")(x, f=2)


def test_7_arc_writes_into_its_input():
    x = normal(9, 5)
    after = x.copy()
    byzfl.ARC(f=2)(after)
    assert (x != after).any(axis=1).sum() == 3


def test_8_centered_clipping_keeps_state_between_calls():
    x, theirs = normal(9, 5) + 5, byzfl.CenteredClipping(tau=1.0)
    assert not np.allclose(theirs(x), theirs(x))
    with pytest.raises(TypeError):
        byzfl.CenteredClipping(m=np.zeros(5))


def test_9_float64_tensors_become_float32():
    x = torch.tensor(normal(9, 5))
    assert byzfl.Median()(x).dtype == torch.float32
    assert parse_aggregator("cwmed")(x, f=2).dtype == torch.float64


def test_10_nan_is_not_refused():
    x = normal(9, 5)
    x[3, 1] = np.nan
    assert np.isnan(byzfl.Krum(f=2)(x)).any()
    assert np.isnan(byzfl.Median()(x)).sum() == 1
    assert np.isnan(byzfl.GeometricMedian()(x)).all()
    with pytest.raises(ValueError, match=r"\{3: nan\}"):
        parse_aggregator("krum")(x, f=2)


def test_11_cdist_is_inaccurate_for_nearly_equal_rows():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(10**5) + 1e-5 * rng.standard_normal((26, 10**5))
    x = x.astype(np.float32)
    exact = o.distances(x.astype(np.float64))
    apart = ~np.eye(26, dtype=bool)

    def error(found):
        return (np.abs(found - exact)[apart] / exact[apart]).max()

    rows = torch.tensor(x)
    assert error(torch.cdist(rows, rows).numpy()) == pytest.approx(92, abs=5)
    from flwr_ctma.engine.updates import Updates

    assert error(np.sqrt(Updates.of(x).squared_distances())) < 1e-6
