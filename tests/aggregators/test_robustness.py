"""The (f, κ) inequality, on samples made to break it.

For every S of n − f rows: ‖A(x) − mean_S‖² ≤ κ · mean_{i in S} ‖x_i − mean_S‖².
"""

from itertools import combinations

import numpy as np
import pytest

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import CAF, SMEA, Bulyan, DnC, SampledDnC

# κ for (n, f) = (8, 2), where f/(n − 2f) = 1/2 and f/(n − f) = 1/3, by hand.
KNOWN = {
    "cwtm": 4.5,
    "cwmed": 9,
    "gm": 9,
    "krum": (9.6**0.5 + 3**0.5) ** 2 / 3,
    "multikrum": (12.8**0.5 + 2**0.5 + 6**0.5) ** 2 / 18,
    "multikrum(m=2)": (9.6**0.5 + 3**0.5) ** 2 / 3,
    "medoid": (6 * 2**0.5 + 2) ** 2 / 16,
    "mda": 8 * 4 / 6,
    "smea": 2,
    "meamed": 8 / 3 * 4,
    "ctma(cwmed)": 8 / 3 * 4,
    "ctma(cwtm)": 8 / 3 * 2.5,
    "ctma(gm)": 8 / 3 * 4,
    "ctma(krum)": 8 / 3 * (1 + (9.6**0.5 + 3**0.5) ** 2 / 9),
    "nnm(cwmed)": 8 / 3 * 10,
    "nnm(cwtm)": 8 / 3 * 5.5,
    "nnm(gm)": 8 / 3 * 10,
    "nnm(krum)": 8 / 3 * (1 + (9.6**0.5 + 3**0.5) ** 2 / 3),
    "ctma(nnm(cwmed))": 8 / 3 * (1 + 80 / 9),
    "nnm(ctma(cwmed))": 8 / 3 * (1 + 32 / 3),
    "layerwise(cwtm)": 4.5,
    "ctma(ctma(gm))": 8 / 3 * (1 + 32 / 9),
    "dnc": 4 * 2 * (6 / 4) ** 2,
    "arc(gm)": 16,
    "arc(ctma(cwmed))": ((8 / 3 * 4) ** 0.5 + 1) ** 2,
    "ctma(arc(gm))": 8 / 3 * (1 + 16 / 3),
    "bucketing(cwmed, size=1)": 10,
    "bucketing(cwmed, size=2)": None,
    "bucketing(gm)": 10,
    "bucketing(ctma(cwtm), size=1)": 1 + 8 / 3 * 2.5,
    # Two groups of four bear one Byzantine row each, and two may be in one group.
    "hierarchical(cwtm, size=3, failure=0.0, seed=0)": None,
    "hierarchical(ctma(cwmed), cwmed, size=3, failure=0.0, seed=0)": None,
}


class Bench:
    """n rows, f of them Byzantine, and all sets of n − f that may be the honest."""

    def __init__(self, spec, n, f):
        self.rule, self.n, self.f = parse_aggregator(spec), n, f
        self.subsets = np.array(list(combinations(range(n), n - f)))

    def ratio(self, x):
        """Largest ‖A(x) − mean_S‖² over the spread of S."""
        found = self.rule(x, f=self.f)
        honest = x[self.subsets]
        means = honest.mean(axis=1)
        apart = honest - means[:, None]
        if isinstance(self.rule, CAF | SMEA | DnC):
            spread = np.linalg.norm(apart, ord=2, axis=(1, 2)) ** 2 / (self.n - self.f)
        else:
            spread = (apart**2).sum(axis=(1, 2)) / (self.n - self.f)
        error = ((found - means) ** 2).sum(axis=1)
        rounding = 1e-9 * np.abs(x).max() ** 2
        return np.max(error / (spread + rounding))

    def starts(self, rng, d):
        """Samples in which f rows, or the f that are dropped, deceive the most."""
        n, f = self.n, self.f
        honest = rng.standard_normal((n - f, d))
        middle, spread = honest.mean(axis=0), honest.std(axis=0)
        toward = np.ones((f, 1)) * rng.standard_normal(d)
        yield rng.standard_normal((n, d))
        yield np.vstack([np.zeros((n - f, d)), np.ones((f, d))])
        yield np.vstack([honest, -middle * 3 + 0 * toward])
        yield np.vstack([honest, middle - 1.5 * spread + 0 * toward])
        yield np.vstack([honest, middle + toward / np.linalg.norm(toward[0])])
        yield np.vstack([honest, np.repeat(honest[:1], f, axis=0)])
        yield np.vstack([honest, 1e6 * toward])
        yield np.round(2 * rng.standard_normal((n, d)))

    def worst(self, rng, d, steps):
        """Climb from each start: keep the changes that make the ratio worse."""
        worst = 0.0
        for x in self.starts(rng, d):
            ratio, size = self.ratio(x), 1.0
            for _ in range(steps):
                trial = x.copy()
                rows = rng.integers(0, self.n, rng.integers(1, 3))
                trial[rows] += size * rng.standard_normal((len(rows), d))
                found = self.ratio(trial)
                if found > ratio:
                    x, ratio = trial, found
                else:
                    size = max(0.9 * size, 1e-3)
            worst = max(worst, ratio)
        return worst


def sizes(spec):
    if "bucketing" in spec:
        return [(6, 1), (10, 2), (11, 2), (14, 3)]
    if "hierarchical" in spec:
        return [(3, 1), (6, 1), (7, 1), (9, 2)]
    if spec == "bulyan":
        return [(7, 1), (8, 1), (11, 2)]
    if "krum" in spec:
        return [(7, 2), (9, 3)]
    return [(3, 1), (5, 2), (8, 3), (9, 2)]


@pytest.mark.parametrize("spec", [*KNOWN, "caf", "bulyan"])
def test_error_of_every_sample_is_within_kappa(spec):
    for n, f in sizes(spec):
        bench = Bench(spec, n, f)
        limit = bench.rule.kappa(n, f)
        for d in (1, 2):
            worst = bench.worst(np.random.default_rng(d), d, steps=25)
            assert worst <= limit * (1 + 1e-6), (n, f, d, worst / limit)
            assert worst >= 0.999 * f / (n - 2 * f), "no rule can do better"


@pytest.mark.parametrize("spec", KNOWN)
def test_kappa_is_that_by_hand(spec):
    assert parse_aggregator(spec).kappa(8, 2) == pytest.approx(KNOWN[spec])


def test_kappa_of_bulyan_is_that_by_hand():
    assert Bulyan().kappa(11, 2) == pytest.approx((6**0.5 + (7 * 9 / 5) ** 0.5) ** 2)
    assert Bulyan().kappa(11, 0) == 0
    assert Bulyan().kappa(8, 2) is None  # undefined there


@pytest.mark.parametrize(("n", "f"), [(3, 1), (17, 3), (17, 8), (100, 30)])
def test_kappa_of_caf_is_the_worst_over_all_weights_that_the_filter_took(n, f):
    """g of the weight of S and b ≥ g of the rest are gone; see `CAF.kappa`."""
    b, g = (
        x.ravel() for x in np.meshgrid(np.linspace(0, f, 301), np.linspace(0, f, 301))
    )
    b, g = b[g <= b], g[g <= b]
    a, e = n - f - g, f - b
    sigma = 2 * (n - f) * a / ((a - e) * (a + e))
    moved = np.maximum((2 * f - g - b) / (n - 2 * f), (g + b) / (a + e))
    roots = np.sqrt(sigma * moved) + np.sqrt(sigma * e / a) + np.sqrt(g / a)
    assert max(roots) ** 2 <= CAF().kappa(n, f) <= 1.02 * max(roots) ** 2


@pytest.mark.parametrize("spec", [*KNOWN, "caf", "bulyan"])
def test_kappa_is_at_least_the_lower_bound(spec):
    """κ ≥ f/(n − 2f) for every rule (Allouah et al., AISTATS 2023, Proposition 6)."""
    for n, f in [(5, 2), (17, 3), (17, 5), (17, 8), (100, 20)]:
        kappa = parse_aggregator(spec).kappa(n, f)
        assert kappa is None or kappa >= f / (n - 2 * f)


def test_error_of_the_mean_is_unbounded():
    """The instrument shows it: the ratio grows without bound."""
    bench = Bench("mean", 7, 2)
    assert bench.worst(np.random.default_rng(0), 2, steps=0) > 1e6
    assert bench.rule.kappa(17, 0) == 0
    assert bench.rule.kappa(17, 1) == np.inf


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_two_liars_break_rows_that_fail_at_once_but_not_one_by_one(size):
    honest = np.random.default_rng(0).standard_normal((15, 2))
    errors = {SampledDnC(): 0.0, DnC(): 0.0}
    for second in np.linspace(-3, 3, 121):
        x = np.vstack([honest, [[0, size**2], [size, second]]])
        for rule, worst in errors.items():
            error = np.linalg.norm(rule(x, f=2) - honest.mean(axis=0))
            errors[rule] = max(worst, error)
    assert errors[SampledDnC()] > 0.9 * size / 15
    assert errors[DnC()] < 1e-6


@pytest.mark.parametrize(
    "spec", ["cge", "fltrust", "sampleddnc", "ctma(cge)", "nnm(sampleddnc)"]
)
def test_kappa_is_none_where_no_bound_is_known(spec):
    assert parse_aggregator(spec).kappa(17, 3) is None


@pytest.mark.parametrize(("n", "f"), [(3, 1), (5, 2), (8, 3), (9, 2), (11, 5)])
def test_mda_error_is_within_the_resilience_bound(n, f):
    """‖A − mean_S‖ ≤ 2f/(n−f) max_{i,j in S} ‖x_i − x_j‖ (RESAM, Proposition 2)."""
    rng = np.random.default_rng(0)
    bench = Bench("mda", n, f)
    for d in (1, 3):
        for x in [start for _ in range(20) for start in bench.starts(rng, d)]:
            apart = np.linalg.norm(x[:, None] - x, axis=2)
            honest = apart[bench.subsets[:, :, None], bench.subsets[:, None]]
            widest = honest.max(axis=(1, 2))
            means = x[bench.subsets].mean(axis=1)
            error = np.linalg.norm(bench.rule(x, f=f) - means, axis=1)
            assert (error <= 2 * f / (n - f) * widest + 1e-9 * np.abs(x).max()).all()
