"""Digits: float32 rows select what float64 selects; huge ones neither spoil nor count.

Rules that see only distances are compared with their oracles on an isometric copy of
the rows: n points in n dimensions at the float64 distances.
"""

import json
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest

from flwr_ctma import parse_aggregator
from flwr_ctma.engine.updates import Layer, Updates
from tests.helpers import oracles as o
from tests.helpers.table import TABLE, everyone

N, F = 17, 4
BY_DISTANCE = {
    rule.spec: rule.oracle
    for rule in TABLE
    if rule.spec
    in (
        "krum",
        "multikrum",
        "mda",
        "smea",
        "monna",
        "dnc",
        "caf",
        "gm",
        "ctma(gm)",
        "nnm(gm)",
        "nnm(ctma(gm))",
    )
}


@lru_cache(maxsize=1)
def models(d, noise, seed):
    """Unit weights and small updates; F of the clients are off by less than a step."""
    rng = np.random.default_rng(seed)
    sent = rng.standard_normal(d, dtype=np.float32)
    x = noise * rng.standard_normal((N, d), dtype=np.float32)
    shift = rng.standard_normal(d, dtype=np.float32)
    for i in rng.choice(N, F, replace=False):
        x[i] += noise * (0.05 + 0.02 * rng.random()) * shift
    x += sent
    sent.flags.writeable = x.flags.writeable = False
    return sent, x


@lru_cache(maxsize=2)
def exact(d, noise, seed, sent=False):
    """The same models, or updates, as N points in N dimensions."""
    origin, x = models(d, noise, seed)
    return isometric(x.astype(np.float64) - origin if sent else x)


def isometric(x):
    """N points in N dimensions at the distances of the rows, summed in float64."""
    gram = np.zeros((len(x), len(x)))
    for start in range(0, x.shape[1], 10**5):
        part = x[:, start : start + 10**5].astype(np.float64)
        part -= part[0].copy()
        gram += part @ part.T
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(values, 0))


def check_selection(spec, updates, points):
    found = parse_aggregator(spec).aggregate(updates, f=F)
    if spec == "mda":  # subsets tie, and so the rule itself says which is the first
        expected = parse_aggregator(spec)(points, f=F)
    else:
        expected = BY_DISTANCE[spec](points, F)
    size = np.linalg.norm(points - points.mean(axis=0), axis=1).mean()
    np.testing.assert_allclose(found.influence @ points, expected, atol=1e-4 * size)
    apart = np.linalg.norm(points - expected, axis=1)
    np.testing.assert_allclose(found.distances, apart, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("noise", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("spec", BY_DISTANCE)
def test_selection_among_nearly_equal_models_is_that_of_float64(noise, spec):
    sample = 10**5, noise, 1
    sent, x = models(*sample)
    check_selection(spec, x, exact(*sample))
    check_selection(spec, Updates.of([Layer(list(x), sent)]), exact(*sample, sent=True))


@pytest.mark.parametrize("spec", ["krum", "ctma(gm)", "nnm(ctma(gm))"])
def test_selection_among_nearly_equal_large_models_is_that_of_float64(spec):
    sample = 10**6, 1e-4, 2
    check_selection(spec, models(*sample)[1], exact(*sample))


@pytest.mark.long
@pytest.mark.parametrize("noise", [1e-3, 1e-5])
@pytest.mark.parametrize("spec", BY_DISTANCE)
def test_selection_among_nearly_equal_huge_models_is_that_of_float64(noise, spec):
    sample = 10**7, noise, 3
    check_selection(spec, models(*sample)[1], exact(*sample))


@pytest.mark.parametrize(
    ("spec", "noise"),
    [
        ("ctma(cwmed)", 1e-5),
        ("ctma(cwtm)", 1e-5),
        ("nnm(cwmed)", 1e-5),
        ("bulyan", 1e-3),  # at 1e-5 float32 leaves values equally near to a median
    ],
)
def test_columnwise_rule_of_nearly_equal_models_equals_its_oracle(spec, noise):
    """As far as float32 can hold the result, it is the oracle's."""
    _, x = models(4000, noise, 4)
    oracle = next(rule.oracle for rule in TABLE if rule.spec == spec)
    f = 3 if spec == "bulyan" else F
    found = parse_aggregator(spec)(x, f=f)
    np.testing.assert_allclose(found, oracle(x.astype(np.float64), f), atol=1e-6)


@pytest.mark.parametrize("rule", everyone(lambda rule: "mean" not in rule.exempt))
def test_identical_models_are_the_result(rule):
    """To the last bit but one, though float32 leaves no exact zero of distances."""
    row = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    found = rule.aggregate(np.tile(row, (13, 1)), 2, **rule.given(row))
    np.testing.assert_allclose(found.vector, row, rtol=3e-7)
    assert found.distances.max() < 1e-3 * np.linalg.norm(row)


@pytest.mark.parametrize("far", [1e19, 3e38])
@pytest.mark.parametrize(
    "rule",
    # Huge rows count in the result of the mean and of FoolsGold.
    everyone(lambda rule: rule.spec not in ("mean", "foolsgold", "ctma(fltrust)")),
)
def test_result_with_huge_rows_is_that_of_float64(rule, far):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((13, 200)).astype(np.float32)
    x[-2:] = far * np.sign(rng.standard_normal((2, 200)))
    given = rule.given(np.ones(200))
    found = rule.aggregate(x, 2, **given)
    exact = rule.aggregate(x.astype(np.float64), 2, **given)
    np.testing.assert_allclose(found.vector, exact.vector, atol=2e-5)
    np.testing.assert_allclose(found.influence, exact.influence, atol=2e-5)
    assert np.isfinite(found.vector).all()
    if rule.spec.startswith(("ctma", "nnm(ctma", "krum", "mda", "smea", "dnc", "cge")):
        assert (found.influence[-2:] == 0).all()


def test_distances_of_huge_rows_overflow_to_infinity_at_worst():
    x = np.ones((5, 100), np.float32)
    x[4] = 3e38
    for spec in ("ctma(gm)", "ctma(cwmed)", "cwmed", "krum"):
        distances = parse_aggregator(spec).aggregate(x, f=1).distances
        assert (distances[:4] < 1e-3).all()
        assert distances[4] > 1e39


@pytest.mark.parametrize("factor", [1e-15, 1e-6, 1e6, 1e15])
@pytest.mark.parametrize("spec", ["ctma(gm)", "krum", "caf", "nnm(cwmed)", "mda"])
def test_scaling_in_float32_scales_the_result(spec, factor):
    x = np.random.default_rng(0).standard_normal((11, 3000)).astype(np.float32)
    rule = parse_aggregator(spec)
    scaled = rule(x * np.float32(factor), f=2) / factor
    np.testing.assert_allclose(scaled, rule(x, f=2), rtol=1e-4, atol=1e-5)


MEMORY = """
import json, sys, tracemalloc
import numpy as np
from flwr_ctma import parse_aggregator
n, d, f = map(int, sys.argv[1:4])
x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
peaks = {}
def run(spec, rows):
    trusts = "fltrust" in spec or "zeno" in spec
    given = {"reference": rows[0]} if trusts else {}
    return parse_aggregator(spec)(rows, f=f, **given)
for spec in sys.argv[4:]:
    run(spec, x[:, :99])  # code that is loaded at first use is not the rule's memory
tracemalloc.start()  # once: what a rule holds on to counts for the next as well
for spec in sys.argv[4:]:
    tracemalloc.reset_peak()
    out = run(spec, x)
    peaks[spec] = (tracemalloc.get_traced_memory()[1] - out.nbytes) / x.nbytes
    del out
print(json.dumps(peaks))
"""


@pytest.mark.parametrize(("n", "d", "f"), [(17, 10**6, 3), (100, 2 * 10**5, 20)])
def test_extra_memory_is_a_quarter_of_the_input(n, d, f):
    """Beside the output, for every rule; n (n − f) d numbers would be 14 times that."""
    specs = [rule.spec for rule in TABLE if n < 100 or rule.spec != "smea"]
    # Of m groups m rows are made.
    specs = [spec.replace("size=3", "size=32") for spec in specs]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, (n, d, f)), *specs],
        env={"PATH": "", "FLWR_CTMA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = json.loads(done.stdout)
    assert peaks.keys() == set(specs)
    assert max(peaks.values()) <= 0.25, {k: v for k, v in peaks.items() if v > 0.2}


def test_isometric_copies_keep_distances():
    """The instrument itself."""
    x = np.random.default_rng(0).standard_normal((5, 40))
    np.testing.assert_allclose(o.distances(isometric(x)), o.distances(x), atol=1e-9)
