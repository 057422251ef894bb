"""Sorting networks: proved on zeros and ones, compared with a plain sort."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_ctma.engine.kernels import torch as torch_primitives
from flwr_ctma.engine.kernels.network import network, sort_rows
from flwr_ctma.engine.kernels.sorting import nearest_mean, ranked_mean

COEFFICIENTS = st.integers(1, 70).flatmap(
    lambda n: st.lists(st.sampled_from([0, 0, 1, 1, 0.25]), min_size=n, max_size=n)
)


def blocks(n, seed, width=40):
    """Columns of continuous values, and of few values with many ties."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width))
    x[:, ::3] = np.round(x[:, ::3])
    return x


@pytest.mark.parametrize("n", range(1, 13))
def test_network_sorts_zeros_and_ones(n):
    """It sorts everything if it sorts zeros and ones (Knuth, TAOCP 3, 5.3.4 Z)."""
    columns = np.array(list(product([0.0, 1.0], repeat=n))).T.copy()
    rows = np.array(sort_rows(columns.copy(), range(1, n + 1), np.minimum, np.maximum))
    np.testing.assert_array_equal(rows, np.sort(columns, axis=0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(COEFFICIENTS.filter(any), st.integers(0, 999))
def test_pruned_network_gives_the_ranked_mean(coefficients, seed):
    """What is left of the network for some ranks gives their mean, in any backend."""
    x = blocks(len(coefficients), seed)
    expected = np.average(np.sort(x, axis=0), axis=0, weights=coefficients)
    tensor = torch_primitives.ranked_mean(torch.tensor(x), coefficients)
    found = ranked_mean(x.copy(), coefficients)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-12)


def test_network_for_few_ranks_is_pruned():
    """A sum of all ranks needs no comparator, a maximum nobody's smaller value."""
    whole = network(tuple(map(float, range(17))))
    assert network((1.0,) * 17) == ()
    top = network((0.0,) * 16 + (1.0,))
    assert len(top) < len(whole)
    assert not any(c.keep_low for c in top[-4:])
    for middle in ([8], range(4, 13)):
        kept = network(tuple(float(r in middle) for r in range(17)))
        assert len(kept) < len(whole)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(0, 999), st.data())
def test_nearest_mean_equals_a_sort(n, seed, data):
    """Of the k values nearest to the median; without ties it is one set of values."""
    k = data.draw(st.integers(1, n))
    x = np.random.default_rng(seed).standard_normal((n, 30))
    if n % 2 == 0:
        k = max(k, 2)  # the two middle values are equally near
    median = np.median(x, axis=0)
    chosen = np.argsort(np.abs(x - median), axis=0)[:k]
    expected = np.take_along_axis(x, chosen, axis=0).mean(axis=0)
    np.testing.assert_allclose(nearest_mean(x.copy(), k), expected, atol=1e-12)
    tensor = torch_primitives.nearest_mean(torch.tensor(x), k)
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("n", [9, 60])
@pytest.mark.parametrize("far", [1e8, 1e19, 3e38])
def test_huge_values_that_are_trimmed_cost_no_precision(n, far):
    """In float32, where a sum that they had entered would have lost the others."""
    x = np.random.default_rng(0).standard_normal((n, 50)).astype(np.float32)
    f = n // 3
    ranks = [float(f <= r < n - f) for r in range(n)]
    tame, wild = x.copy(), x.copy()
    tame[:f], wild[:f] = 1e4, far
    for sign in (1, -1):
        for rule in (
            lambda block: ranked_mean(block, ranks),
            lambda block: nearest_mean(block, n - f),
        ):
            same = rule(sign * tame), rule(sign * wild)
            np.testing.assert_array_equal(*same)
