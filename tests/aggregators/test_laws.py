"""The laws of the table: each on every rule that is not exempt, with a reason, from it.

A law is a function of a rule, rows, f, a reference and a seed that asserts.
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import RULES
from tests.helpers.table import LAWS, TABLE, everyone, few, obeying, samples


def about(value, rule, x):
    """What equals up to rounding; the geometric median is found to its tolerance."""
    digits = 1e-5 if rule.flat else 1e-9
    return pytest.approx(value, rel=0, abs=digits * max(1.0, np.abs(x).max()))


def permutation(rule, x, f, reference, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    given = rule.given(reference)
    assert rule(x[order], f, **given) == about(rule(x, f, **given), rule, x)


def translation(rule, x, f, reference, seed):
    by = 10 * np.random.default_rng(seed).standard_normal(x.shape[1])
    moved = rule(x + by, f, **rule.given(reference + by))
    assert moved == about(rule(x, f, **rule.given(reference)) + by, rule, x + by)


def scaling(rule, x, f, reference, seed):
    factor = np.random.default_rng(seed).choice([1e-12, 1e-3, 0.7, 40.0, 1e9])
    scaled = rule(x * factor, f, **rule.given(reference * factor))
    assert scaled / factor == about(rule(x, f, **rule.given(reference)), rule, x)


def average(rule, x, f, reference, seed):
    """Ties and identical rows, too, leave the result within the hull of the rows."""
    rng = np.random.default_rng(seed)
    for rows in (x, np.round(x), x[rng.integers(0, len(x), len(x))], x * 0 + 0.1):
        found = rule.aggregate(rows, f, **rule.given(reference))
        assert found.influence.min() >= -1e-12
        assert found.influence.sum() == pytest.approx(1, rel=1e-9)
        slack = 1e-9 * max(1.0, np.abs(rows).max())
        assert (found.vector >= rows.min(axis=0) - slack).all()
        assert (found.vector <= rows.max(axis=0) + slack).all()


def majority(rule, x, f, reference, seed):
    """The trusted row, the first or the third, is one of the honest."""
    honest = np.tile(x[0], (len(x), 1))
    if f:
        honest[-f:] = x[-f:] * np.random.default_rng(seed).choice([-1.0, 0.1, 1.0, 1e6])
    found = rule(honest, f, **rule.given(reference))
    assert found == pytest.approx(x[0], rel=0, abs=1e-6 * max(1, np.abs(x).max()))


def bounded(rule, x, f, reference, seed):
    """In float64, and in float32 up to where its squares and sums overflow."""
    honest = x[: len(x) - f]
    wide = 50 * (1 + np.abs(honest).max())
    rng = np.random.default_rng(seed)
    for dtype, far in (("d", 1e8), ("d", 1e19), ("f", 1e8), ("f", 1e19), ("f", 3e38)):
        lies = far * rng.choice([-1.0, 1.0, 0.5], (f, x.shape[1]))
        rows = np.vstack([honest, lies]).astype(dtype)
        found = rule(rows, f, **rule.given(reference))
        assert np.isfinite(found).all()
        assert np.abs(found).max() < wide


def mean(rule, x, f, reference, seed):
    found = rule(x, 0, **rule.given(reference))
    assert found == about(x.mean(axis=0), rule, x)


def repetition(rule, x, f, reference, seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, len(x))
    weights[rng.integers(len(x))] += 1  # some rows may be absent, not all
    given = rule.given(reference)
    weighted = rule(x, f / len(x), weights=weights, **given)
    repeated = rule(np.repeat(x, weights, axis=0), f / len(x), **given)
    assert weighted == about(repeated, rule, x)


CHECKS = {name: globals()[name] for name in LAWS if name != "oracle"}


@pytest.mark.parametrize(
    ("law", "rule"),
    [
        pytest.param(law, *param.values, id=f"{law}-{param.id}")
        for law in CHECKS
        for param in obeying(law)
        if law != "repetition" or param.values[0].weighted
    ],
)
@few
@given(st.data(), st.integers(0, 999))
def test_rule_obeys_the_law(law, rule, data, seed):
    CHECKS[law](rule, *data.draw(samples(rule)), seed)


@pytest.mark.parametrize(
    ("law", "rule"),
    [
        pytest.param(law, rule, id=f"{law}-{rule}")
        for rule in TABLE
        for law in rule.exempt
        if law in CHECKS
    ],
)
def test_exemption_is_needed(law, rule):
    """A law that held after all would have to be taken out of the exemptions."""
    rng = np.random.default_rng(0)
    for seed in range(200):
        f = 1 + seed % 2
        n = rule.least(f) + seed % 4
        x = 40 * rng.standard_normal(3) + 20 * rng.standard_normal((n, 3))
        if seed % 3 == 0:
            x[1] = x[0] + 0.1 * rng.standard_normal(3)  # nearly copies
        try:
            CHECKS[law](rule, x, f, 20 * rng.standard_normal(3), seed)
        except AssertionError:
            return
    pytest.fail(f"{rule} obeys the law of {law}: {LAWS[law]}")


@pytest.mark.parametrize("rule", everyone(lambda rule: rule.weighted))
@few
@given(st.data(), st.sampled_from([0.1, 1.0, 3.0]))
def test_uniform_weights_equal_no_weights(rule, data, weight):
    x, f, reference = data.draw(samples(rule))
    given = rule.given(reference)
    uniform = rule(x, f, weights=[weight] * len(x), **given)
    assert uniform == about(rule(x, f, **given), rule, x)


@pytest.mark.parametrize("rule", everyone())
def test_inputs_are_not_written(rule):
    rng = np.random.default_rng(0)
    x, reference = rng.standard_normal((11, 60)), rng.standard_normal(60)
    before = x.copy()
    x.flags.writeable = reference.flags.writeable = False
    rule.aggregate(x, 2, **rule.given(reference))
    kept = before.copy()
    found = rule(kept, 2, **rule.given(reference))
    np.testing.assert_array_equal(kept, before)
    assert not np.shares_memory(found, kept)


@pytest.mark.parametrize("rule", everyone())
@few
@given(st.data())
def test_aggregate_returns_influence_and_distances_of_rows(rule, data):
    x, f, reference = data.draw(samples(rule))
    given = rule.given(reference)
    found = rule.aggregate(x, f, **given)
    assert found.vector == about(rule(x, f, **given), rule, x)
    assert found.influence.shape == found.distances.shape == (len(x),)
    apart = np.linalg.norm(x - found.vector, axis=1)
    assert found.distances == pytest.approx(apart, rel=1e-6, abs=1e-6)


COLUMNWISE = ("cwmed", "cwtm", "meamed", "bulyan")


def weighs_rows(rule):
    """Whether every coordinate is the same combination of rows."""
    names = [part.partition(")")[0].split(",")[0] for part in rule.spec.split("(")]
    base = "ctma" if "ctma" in names else names[-1].rstrip(")")
    return not rule.referenced and base not in COLUMNWISE and "lasa" not in names


@pytest.mark.parametrize("rule", everyone(weighs_rows))
@few
@given(st.data())
def test_influence_times_rows_is_the_vector(rule, data):
    """Of rules that weigh rows as wholes, the others' is a mean over coordinates."""
    x, f, reference = data.draw(samples(rule))
    found = rule.aggregate(x, f, **rule.given(reference))
    assert found.influence @ x == pytest.approx(found.vector, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("spec", ["cwmed", "cwtm", "meamed", "nnm(cwmed)"])
def test_influence_of_one_column_is_its_weights(spec):
    """One column: there the mean over coordinates is the weight itself."""
    rule = parse_aggregator(spec)
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((9, 1))
        found = rule.aggregate(x, f=2)
        assert found.influence @ x == pytest.approx(found.vector, abs=1e-12)


@pytest.mark.parametrize("rule", everyone())
def test_spelling_and_pickle_give_the_same_rule(rule):
    value = parse_aggregator(rule.spec)
    for same in (parse_aggregator(str(value)), pickle.loads(pickle.dumps(value))):
        assert same == value
        assert hash(same) == hash(value)
    assert str(value) == rule.spec
    assert isinstance(value, RULES[rule.spec.partition("(")[0]])


SCRIPT = """
import sys
import numpy as np
from flwr_ctma import parse_aggregator
for n, d, f in ((17, 120_000, 3), (100, 20_000, 20)):
    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    for spec in sys.argv[1:]:
        found = parse_aggregator(spec).aggregate(x, f=f)
        sys.stdout.buffer.write(found.vector.tobytes())
        sys.stdout.buffer.write(found.influence.tobytes() + found.distances.tobytes())
"""


def test_bits_do_not_depend_on_the_number_of_threads():
    """Of all primitives: sums, products, columns, mixed columns, distances."""
    specs = ["mean", "gm", "caf", "bulyan", "ctma(cwmed)", "nnm(cwtm)", "cclip"]

    def bits(threads):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *specs],
            env={"PATH": "", "FLWR_CTMA_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        )
        return done.stdout

    one = bits("1")
    assert len(one) > 7 * 140_000
    assert bits("2") == one
    assert bits("5") == one
