"""Every bad input is a ValueError with the parameter, its value and the remedy."""

import re

import numpy as np
import pytest
import torch

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import (
    ARC,
    CTMA,
    LASA,
    MDA,
    NNM,
    SMEA,
    Bucketing,
    CenteredClipping,
    Clipping,
    CwMed,
    Distinct,
    FLTrust,
    GeometricMedian,
    Huber,
    Krum,
    Mean,
    MoNNA,
    MultiKrum,
    NormBound,
    SignGuard,
    Zeno,
)
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.errors import parameter_error
from tests.helpers.table import TABLE, everyone

X = np.random.default_rng(0).standard_normal((11, 4))
ONES = np.ones(4)


def refused(call, parameter, *parts):
    """Assert that a call is refused in a sentence with the parameter and all parts."""
    with pytest.raises(ValueError, match=f"Parameter `{parameter}` should be") as info:
        call()
    message = str(info.value)
    for part in ("Found `", *parts):
        assert part in message, message


@pytest.mark.parametrize("rule", everyone())
@pytest.mark.parametrize(
    ("f", "shown"),
    [
        (6, "f = 6"),
        (11, "f = 11"),
        (-1, "f = -1"),
        (0.5, "f = 0.5"),
        (-0.1, "f = -0.1"),
        (3.0, "f = 3.0"),
        (np.float32(0.5), "0.5"),
        (np.int64(6), "6"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "True"),
        (np.bool_(True), "True"),
        ("2", "'2'"),
        (None, "None"),
        ([2], "[2]"),
        (2j, "2j"),
        (np.complex64(2), "2"),
    ],
)
def test_f_out_of_range_is_refused(rule, f, shown):
    refused(lambda: rule(X, f, **rule.given(ONES)), "f", shown)


def test_f_of_half_the_rows_is_refused_with_a_remedy():
    refused(lambda: Mean()(X[:6], f=3), "f", "smaller than n/2 = 3", "more clients")
    refused(lambda: MDA()(X[:3], f=0.4), "f", "rounds up to 2", "more clients")


@pytest.mark.parametrize("rule", everyone(lambda rule: rule.least(2) > 5))
def test_too_few_rows_for_the_rule_are_refused(rule):
    n = rule.least(2)
    rule(X[:n], 2)
    refused(lambda: rule(X[: n - 1], 2), "(f|size)", f"n = {n - 1}")


def test_krum_with_too_large_f_names_another_rule():
    refused(lambda: Krum()(X, f=5), "f", "at most 4", "nnm(cwmed)")


@pytest.mark.parametrize("rule", everyone())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_non_finite_rows_are_refused_with_their_indices(rule, value, dtype):
    x = X.astype(dtype)
    x[3, 1] = x[7, 2] = value
    given = rule.given(ONES)
    for call in (rule, rule.aggregate):
        refused(lambda call=call: call(x, 2, **given), "updates", "{3: ", ", 7: ")
    refused(lambda: rule(torch.tensor(x), 2, **given), "updates", "{3: ", ", 7: ")


@pytest.mark.parametrize("rule", everyone())
def test_non_finite_rows_of_an_unmeasured_layer_are_refused(rule):
    bad = X[:, 2:].copy()
    bad[3, 1] = np.nan
    reference = [ONES[:2], ONES[2:]] if rule.referenced else None
    layers = [Layer(list(X[:, :2])), Layer(list(bad), measured=False)]
    if rule.aggregate(Updates.of(layers[:1], reference and reference[:1]), 2).influence[
        3
    ]:
        updates = Updates.of(layers, reference)
        refused(lambda: rule(updates, 2), "updates", "{3: nan}")
        refused(lambda: rule.aggregate(updates, 2), "updates", "{3: nan}")


def test_non_finite_bfloat16_rows_are_refused():
    x = torch.tensor(X).to(torch.bfloat16)
    x[5] = torch.inf
    refused(lambda: CTMA(CwMed())(x, f=2), "updates", "{5: inf}")
    refused(lambda: CwMed()(x, f=2), "updates", "{5: inf}")


@pytest.mark.parametrize(
    ("updates", "shown"),
    [
        (X[0], "(4,)"),
        (X[None], "(1, 11, 4)"),
        (X[:0], "(0, 4)"),
        (X[:, :0], "(11, 0)"),
        (X.astype(int), "int64"),
        (X.astype(complex), "complex128"),
        (X.astype(object), "object"),
        (X > 0, "bool"),
        (X.astype(str), "U"),
        (X.tolist(), "list"),
        (list(X), "np.stack"),
        (None, "NoneType"),
        ("rows", "str"),
        (torch.tensor(X)[0], "(4,)"),
        (torch.tensor(X)[:0], "(0, 4)"),
        (torch.ones(11, 4, dtype=torch.int32), "int32"),
        (torch.ones(11, 4, dtype=torch.complex64), "complex64"),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) else "",
)
def test_updates_that_are_no_float_matrix_are_refused(updates, shown):
    refused(lambda: Mean()(updates, f=1), "updates", shown)


@pytest.mark.parametrize(
    "layers",
    [
        [Layer(X), Layer(X[:10])],
        [Layer([X[0], X[1][:3]])],
        [Layer(X, origin=np.ones(3))],
        [Layer([X[:2], X[:2]], origin=ONES)],
    ],
    ids=["clients", "lengths", "origin", "dimensions"],
)
def test_layers_of_unequal_shapes_are_refused(layers):
    refused(lambda: Updates.of(layers), "updates", "rows as long as their origin")


@pytest.mark.parametrize("rule", everyone(lambda rule: rule.weighted))
@pytest.mark.parametrize(
    ("weights", "shown"),
    [
        ([1.0] * 10, "(10,)"),
        ([], "(0,)"),
        (1.0, "()"),
        ([[1.0] * 11], "(1, 11)"),
        ([-1.0] + [1.0] * 10, "-1.0"),
        ([np.nan] + [1.0] * 10, "nan"),
        ([np.inf] + [1.0] * 10, "inf"),
        ([1e308] * 11, "1e+308"),
        ([0.0] * 11, "0.0"),
        ("heavy", "'heavy'"),
        ([1j] * 11, "1j"),
        ([None] * 11, "None"),
        ([[1.0], [1.0, 2.0]], "2.0"),
        ({1: 1.0}, "{1: 1.0}"),
    ],
)
def test_invalid_weights_are_refused(rule, weights, shown):
    given = rule.given(ONES)
    refused(lambda: rule(X, 2, weights=weights, **given), "weights", shown)


@pytest.mark.parametrize("rule", everyone(lambda rule: not rule.weighted))
def test_weights_for_an_unweighted_rule_are_refused(rule):
    """Never an ignored argument; the part that cannot use them is named."""
    given = rule.given(ONES)
    call = lambda: rule(X, 2, weights=[1.0] * 11, **given)  # noqa: E731
    with pytest.raises(ValueError, match="`weights` should be None for") as info:
        call()
    part = re.search(r"None for (.*), whose", str(info.value))[1]
    assert part in rule.spec
    assert "Use ctma" in str(info.value)


def without_reference(rule):
    return not rule.referenced and "monna" not in rule.spec


@pytest.mark.parametrize("rule", everyone(without_reference))
def test_reference_for_a_rule_without_one_is_refused(rule):
    refused(lambda: rule(X, 2, reference=ONES), "reference", rule.spec, "Drop it")


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        (np.ones(3), "(3,)"),
        (np.ones((1, 4)), "(1, 4)"),
        (1.0, "()"),
        ([np.nan] * 4, "nan"),
        ([1.0, np.inf, 1.0, 1.0], "inf"),
        (["a"] * 4, "U1"),
        ([1j] * 4, "complex"),
        ([None] * 4, "object"),
        ([[1.0], [1.0, 2.0]], "2.0"),
    ],
)
def test_invalid_reference_is_refused(kind, reference, shown):
    for spec in ("fltrust", "cclip", "ctma(fltrust)"):
        rule = parse_aggregator(spec)
        refused(lambda r=rule: r(kind(X), 2, reference=reference), "reference", shown)


def test_missing_or_second_reference_is_refused():
    refused(lambda: FLTrust()(X, f=2), "reference", "None", "trusted examples")
    refused(lambda: CTMA(FLTrust())(X, f=2), "reference", "None")
    refused(lambda: Zeno(Mean())(X, f=2), "reference", "None", "trusted examples")
    updates = Updates.of([Layer(X)])
    refused(lambda: FLTrust()(updates, 2, reference=ONES), "reference", "Updates.of")
    refused(lambda: Updates.of([Layer(X)], [ONES, ONES]), "reference", "each of 1")


@pytest.mark.parametrize(
    ("build", "parameter", "shown"),
    [
        (lambda: GeometricMedian(tolerance=0.0), "tolerance", "0.0"),
        (lambda: GeometricMedian(tolerance=1.0), "tolerance", "1.0"),
        (lambda: GeometricMedian(tolerance=float("nan")), "tolerance", "nan"),
        (lambda: GeometricMedian(tolerance="small"), "tolerance", "'small'"),
        (lambda: GeometricMedian(tolerance=True), "tolerance", "True"),
        (lambda: CenteredClipping(radius=0.0), "radius", "0.0"),
        (lambda: CenteredClipping(radius=-1.0), "radius", "-1.0"),
        (lambda: CenteredClipping(radius=float("inf")), "radius", "inf"),
        (lambda: CenteredClipping(radius=float("nan")), "radius", "nan"),
        (lambda: CenteredClipping(steps=0), "steps", "0"),
        (lambda: CenteredClipping(steps=1.5), "steps", "1.5"),
        (lambda: MultiKrum(m=0), "m", "0"),
        (lambda: MultiKrum(m=2.0), "m", "2.0"),
        (lambda: MultiKrum(m=12)(X, f=2), "m", "12"),
        (lambda: Bucketing(CwMed(), size=0), "size", "0"),
        (lambda: Bucketing(CwMed(), size=True), "size", "True"),
        (lambda: Bucketing(CwMed(), size=3)(X, f=2), "size", "3"),
        (lambda: Bucketing(CwMed(), seed=-1), "seed", "-1"),
        (lambda: Bucketing(CwMed(), seed=None), "seed", "None"),
        (lambda: Distinct(Mean(), nearer=1.0), "nearer", "1.0"),
        (lambda: Distinct(Mean(), nearer=-0.1), "nearer", "-0.1"),
        (lambda: Huber(radius=0.0), "radius", "0.0"),
        (lambda: Huber(radius=float("nan")), "radius", "nan"),
        (lambda: SignGuard(shortest=1.5), "shortest", "1.5"),
        (lambda: SignGuard(longest=0.5), "longest", "0.5"),
        (lambda: LASA(sparsity=1.0), "sparsity", "1.0"),
        (lambda: LASA(sparsity=-0.1), "sparsity", "-0.1"),
        (lambda: LASA(sparsity=float("nan")), "sparsity", "nan"),
        (lambda: LASA(lambda_n=0.0), "lambda_n", "0.0"),
        (lambda: LASA(lambda_s=float("inf")), "lambda_s", "inf"),
        (lambda: Clipping(Mean(), radius=0.0), "radius", "0.0"),
        (lambda: Clipping(Mean(), radius=float("inf")), "radius", "inf"),
        (lambda: NormBound(Mean(), quantile=0.0), "quantile", "0.0"),
        (lambda: NormBound(Mean(), quantile=1.5), "quantile", "1.5"),
        (lambda: MoNNA(pivot=-1), "pivot", "-1"),
        (lambda: MoNNA(pivot=11)(X, f=2), "pivot", "11"),
        (lambda: MDA(limit=0), "limit", "0"),
        (lambda: SMEA(limit=0), "limit", "0"),
        (lambda: SMEA(limit=3)(X, f=4), "f", "4"),
        (lambda: CTMA("gm"), "base", "'gm'"),
        (lambda: CTMA(GeometricMedian), "base", "GeometricMedian"),
        (lambda: NNM(None), "base", "None"),
        (lambda: ARC(3), "base", "3"),
    ],
)
def test_invalid_parameter_of_a_rule_is_refused(build, parameter, shown):
    refused(build, parameter, shown)


def test_invalid_number_of_threads_is_refused():
    """The pool is made once, so the check is seen from a fresh process."""
    import subprocess
    import sys

    script = "import numpy as np; from flwr_ctma.aggregators import Mean\n"
    script += "Mean()(np.ones((3, 200000)), f=1)"
    for number in ("0", "-2", "two", "1.5"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"PATH": "", "FLWR_CTMA_NUM_THREADS": number},
            capture_output=True,
            text=True,
        )
        assert f"Found `FLWR_CTMA_NUM_THREADS = '{number}'`" in done.stderr


def test_error_shortens_a_long_value():
    message = str(parameter_error("weights", "positive", list(range(10_000))))
    assert len(message) < 400
    assert "…" in message


def test_unregistered_rule_is_shown_as_its_repr():
    """It is written as its repr in errors."""

    class Mine(Mean):
        weighted = False

    assert str(Mine()) == repr(Mine())
    refused(lambda: Mine()(X, f=2, weights=[1.0] * 11), "weights", "Mine()")


def test_table_has_each_rule_once():
    assert len({rule.spec for rule in TABLE}) == len(TABLE)
