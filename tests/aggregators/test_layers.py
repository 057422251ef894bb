"""Rules that look at each layer on its own, against loops over the layers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import lasa as module
from flwr_ctma.engine.updates import Layer, Updates
from tests.helpers import oracles as o
from tests.helpers.table import everyone, few

N, F = 11, 2
WIDTHS = (3, 40, 1, 500)
ENDS = np.cumsum(WIDTHS)[:-1]


def sample(seed, dtype=np.float64, lie=3.0):
    """Rows of which the first lies in the second layer, the next in the last."""
    x = np.random.default_rng(seed).standard_normal((N, sum(WIDTHS))) + 0.3
    x[0, 3:43] *= -lie
    x[1, 44:] = lie * abs(x[1, 44:])
    return x.astype(dtype)


def layers(x, origin=None):
    """The rows as replies, in layers about what was sent."""
    if origin is None:
        return Updates.of([Layer(part) for part in np.split(x, ENDS, axis=1)])
    parts = zip(np.split(x + origin, ENDS, axis=1), np.split(origin, ENDS), strict=True)
    return Updates.of([Layer(list(rows), sent) for rows, sent in parts])


def has_one_answer(rule):
    """LASA's threshold is that of the whole row; a reference has layers as well."""
    alone = "(" not in rule.spec and rule.spec != "lasa"
    return alone and not rule.referenced and "oracle" not in rule.exempt


@pytest.mark.parametrize("rule", everyone(has_one_answer))
@pytest.mark.parametrize("seed", range(3))
def test_layerwise_rule_is_the_oracle_in_each_layer(rule, seed):
    x = sample(seed)
    found = parse_aggregator(f"layerwise({rule.spec})")(layers(x, 0 * x[0] + 2.0), F)
    parts = np.split(x, ENDS, axis=1)
    for layer, part in zip(found, parts, strict=True):
        if rule.flat and part.shape[1] == 1:
            continue  # many medians
        np.testing.assert_allclose(layer, rule.oracle(part, F), atol=2e-5)


def test_layerwise_rule_takes_weights_and_a_reference():
    x, weights = sample(0), np.arange(1.0, N + 1)
    found = parse_aggregator("layerwise(cwtm)")(layers(x), 0.2, weights=weights)
    expected = o.cwtm(x, 0.2 * N, weights)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-10)
    own = x[2] + 0.1
    rows = [Layer(part) for part in np.split(x, ENDS, axis=1)]
    rows = Updates.of(rows, np.split(own, ENDS))
    found = parse_aggregator("layerwise(fltrust)")(rows, F)
    for layer, part, start in zip(
        found, np.split(x, ENDS, axis=1), np.split(own, ENDS), strict=True
    ):
        expected = o.fltrust(part, F, reference=start)
        np.testing.assert_allclose(layer, expected, atol=1e-10)


@pytest.mark.parametrize("outer", ["ctma", "nnm", "arc"])
def test_layerwise_rule_in_another_one_sees_its_rows(outer):
    x = sample(1)
    found = parse_aggregator(f"{outer}(layerwise(cwmed))")(layers(x), F)
    expected = getattr(o, outer)(o.cwmed, x, F)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-10)


def test_influence_is_the_mean_over_coordinates_and_distances_are_of_whole_rows():
    x = sample(2)
    rule = parse_aggregator("layerwise(krum)")
    found = rule.aggregate(layers(x), F)
    parts = np.split(x, ENDS, axis=1)
    shares = [parse_aggregator("krum").aggregate(part, F).influence for part in parts]
    expected = np.average(shares, axis=0, weights=WIDTHS)
    np.testing.assert_allclose(found.influence, expected, atol=1e-12)
    apart = np.linalg.norm(x - np.concatenate(found.vector), axis=1)
    np.testing.assert_allclose(found.distances, apart, rtol=1e-9)
    assert rule.weigh(layers(x), F) is None
    assert rule.weigh(x, F) is not None


def test_a_layer_that_is_not_measured_is_judged_by_itself():
    x = sample(3)
    cut = [Layer(x[:, :43], measured=False), Layer(x[:, 43:])]
    found = parse_aggregator("layerwise(krum)").aggregate(Updates.of(cut), F)
    for layer, part in zip(found.vector, (x[:, :43], x[:, 43:]), strict=True):
        np.testing.assert_array_equal(layer, o.krum(part, F))
    apart = np.linalg.norm(x[:, 43:] - found.vector[1], axis=1)
    np.testing.assert_allclose(found.distances, apart, atol=1e-9)


PARAMETERS = [
    {},
    {"sparsity": 0.0},
    {"sparsity": 0.9, "lambda_s": 2.0},
    {"lambda_n": 0.2, "lambda_s": 0.2},
]


@pytest.mark.parametrize("given", PARAMETERS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_lasa_is_the_oracle_in_layers(given, seed):
    x, rule = sample(seed), module.LASA(**given)
    expected = o.lasa(x, F, **given, widths=WIDTHS)
    for rows in (layers(x), layers(x, np.linspace(-1, 1, x.shape[1]))):
        found = rule.aggregate(rows, F)
        vector = np.concatenate(found.vector)
        np.testing.assert_allclose(vector, expected, atol=1e-12)
        apart = np.linalg.norm(x - vector, axis=1)
        np.testing.assert_allclose(found.distances, apart, rtol=1e-9)
    assert not np.allclose(expected, o.lasa(x, F, **given)), "layers matter"


@pytest.mark.parametrize("seed", range(3))
def test_lasa_of_mixed_rows_is_the_oracle_in_layers(seed):
    x = sample(seed)
    found = parse_aggregator("nnm(lasa)")(layers(x), F)
    expected = o.nnm(lambda m, f: o.lasa(m, f, widths=WIDTHS), x, F)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_lasa_of_small_floats_keeps_what_float64_keeps(dtype):
    x = sample(4, dtype)
    found = np.concatenate(parse_aggregator("lasa")(layers(x), F))
    exact = o.lasa(x.astype(np.float64), F, widths=WIDTHS)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    tensor = parse_aggregator("lasa")(torch.tensor(x), F)
    whole = o.lasa(x.astype(np.float64), F)
    np.testing.assert_allclose(tensor.float(), whole, atol=2e-3)


def test_lasa_of_layers_of_two_dtypes_keeps_what_float64_keeps():
    x = sample(5)
    x[:, :43] = x[:, :43].astype(np.float32)
    parts = [Layer(x[:, :43].astype(np.float32)), Layer(x[:, 43:])]
    found = np.concatenate(parse_aggregator("lasa")(Updates.of(parts), F))
    expected = o.lasa(x, F, widths=(43, sum(WIDTHS) - 43))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_layer_of_zeros_does_not_switch_the_filter_off():
    """A purity of 0/0 in one row would leave no median for the others."""
    x = np.abs(sample(6)) + 0.5
    x[0, 3:43] = 0.0
    x[1, 3:43] *= -1.0
    found = parse_aggregator("lasa")(layers(x), F)
    expected = o.lasa(x, F, widths=WIDTHS)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-12)
    assert (found[1] >= 0).all(), "the row of other signs does not count"


def test_lasa_counts_all_rows_of_a_layer_where_no_row_passes():
    x = np.array([[3.0, 1.0], [-1.0, 3.0], [-3.0, -1.0]])
    rule = module.LASA(sparsity=0.0, lambda_n=1.0, lambda_s=0.1)
    rows = Updates.of([Layer(x[:, :1]), Layer(x[:, 1:])])
    found = np.concatenate(rule(rows, 1))
    np.testing.assert_allclose(found, o.lasa(x, 1, 0.0, 1.0, 0.1, (1, 1)))


def test_lasa_takes_norms_that_are_equal_up_to_rounding_for_equal():
    x = np.random.default_rng(0).standard_normal((N, 50))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = module.LASA(sparsity=0.0, lambda_n=1e-3, lambda_s=99.0)(x, F)
    np.testing.assert_allclose(found, x.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("rule", ["lasa", "layerwise(lasa)"])
def test_a_layer_without_numbers_changes_nothing(rule):
    x, given = sample(1), parse_aggregator(rule)
    with_it = Updates.of([Layer(x[:, :43]), Layer(x[:, :0]), Layer(x[:, 43:])])
    first, empty, last = given(with_it, F)
    expected = given(Updates.of([Layer(x[:, :43]), Layer(x[:, 43:])]), F)
    np.testing.assert_array_equal(
        np.concatenate([first, last]), np.concatenate(expected)
    )
    assert not empty.size


def test_lasa_of_a_majority_of_zeros_is_zero():
    x = np.zeros((5, 6))
    x[0] = 1.0
    for rows in (x, x[1:]):
        found = parse_aggregator("lasa").aggregate(rows, 1)
        np.testing.assert_array_equal(found.vector, 0.0)
        assert np.isfinite(found.distances).all()


def test_influence_in_lasa_is_of_the_numbers_that_are_left():
    """Half of each row is left, and the last row is cut to half of its length."""
    x = np.tile([1.0, 0.1, -1.0, 0.1], (4, 5))
    x[3] *= 2.0
    rule = module.LASA(sparsity=0.5, lambda_n=9.0, lambda_s=9.0)
    found = rule.aggregate(x, 1).influence
    np.testing.assert_allclose(found, np.array([1, 1, 1, 0.5]) * 0.5 / 4)


@few
@given(st.integers(0, 10**6), st.sampled_from(["normal", "ties", "sorted", "stripes"]))
def test_magnitude_of_a_rank_is_that_of_sorting(seed, kind):
    """Also where the sample, every seventh number or so, misleads."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(rng.integers(1, 60_000))
    cut = rng.integers(0, len(values))
    if kind == "ties":
        values = np.round(values)
    elif kind == "sorted":
        values.sort()
    elif kind == "stripes":
        values[:: 1 + len(values) // module._SAMPLE] += 9.0
    for rank in {0, len(values) // 3, len(values) - 1}:
        expected = np.sort(np.abs(values))[rank]
        row = [values[:cut], values[cut:]]
        assert module._magnitude_of_rank(row, rank) == expected
