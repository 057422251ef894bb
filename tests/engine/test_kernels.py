"""The inner loops, compiled and in NumPy, against float64; and rules with either."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from flwr_ctma.engine import cpu, kernels, layer
from flwr_ctma.engine.kernels import numpy as plain
from flwr_ctma.engine.kernels.protocol import Strip
from tests.helpers.table import TABLE

pytest.importorskip("numba")
COMPILED = importlib.import_module("flwr_ctma.engine.kernels.numba")
BOTH = pytest.mark.parametrize("loops", [COMPILED, plain], ids=["compiled", "plain"])
DTYPES = st.sampled_from([np.float32, np.float64])


def block(n, width, dtype, seed, apart=0):
    """Part of a matrix: rows in one piece each, and not one after the other."""
    rng = np.random.default_rng(seed)
    whole = np.round(4 * rng.standard_normal((n, width + apart)), 1).astype(dtype)
    return whole[:, apart // 2 : apart // 2 + width]


BLOCKS = st.builds(
    block,
    n=st.integers(1, 23),
    width=st.sampled_from([1, 2, 31, 64, 129, 1008, 2500]),
    dtype=DTYPES,
    seed=st.integers(0, 999),
    apart=st.sampled_from([0, 7]),
)


def test_compiled_loops_are_used_with_numba():
    assert kernels.cpu_primitives() is COMPILED
    assert set(COMPILED.__all__) == set(plain.__all__)


def test_without_numba_rules_run_in_numpy():
    """Also where Numba refuses NumPy's version: both are an ImportError."""
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from flwr_ctma import parse_aggregator
from flwr_ctma.engine.kernels import cpu_primitives
parse_aggregator("ctma(cwmed)")(np.eye(5), f=1)
print(cpu_primitives().__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["flwr_ctma.engine.kernels.numpy"]


def test_numba_compiles_without_a_writable_cache():
    """A package that is read-only, for a user without a home."""
    code = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
import numpy as np
from flwr_ctma import parse_aggregator
from flwr_ctma.engine.kernels import cpu_primitives
parse_aggregator("krum")(np.eye(5), f=1)
print(cpu_primitives().__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["flwr_ctma.engine.kernels.numba"]


def test_threads_do_not_write_to_each_others_memory():
    """With one heap for all threads, memory that one frees is another's at once."""
    code = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from flwr_ctma.engine.kernels import numba
from flwr_ctma.engine.kernels.protocol import Strip
rows = np.random.default_rng(0).standard_normal((45, 6000)).astype("f4")
origin, weights = np.full(6000, 5, "f4"), np.arange(1.0, 46)
def compute(_=None):
    read, combine = (f(rows, rows.dtype) for f in (numba.reader, numba.combiner))
    block, total = np.empty_like(rows), np.empty_like(origin)
    read(0, 6000, origin, block)
    combine(0, 6000, origin, weights, total)
    return [
        numba.products([Strip(rows, 0, 6000, rows.dtype, origin)], 45),
        numba.ranked_mean(rows, list(weights)),
        numba.nearest_mean(rows, 30),
        numba.weighted_median(rows, weights),
        numba.squares_apart(rows, origin),
        block,
        total,
    ]
alone = compute()
with ThreadPoolExecutor(2) as pool:
    for found in pool.map(compute, range(100)):
        for values, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(values, expected)
"""
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}  # glibc's: ignored elsewhere
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@BOTH
@settings(max_examples=60, deadline=None)
@given(rows=BLOCKS, data=st.data())
def test_products_equal_float64(loops, rows, data):
    some = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, unique=True))
    exact = rows.astype(np.longdouble)  # float64 would have an error of its own
    size = np.abs(exact) @ np.abs(exact).T
    strips = [Strip.of(rows[:, :40]), Strip.of(rows[:, 40:])]
    found = loops.products(strips, len(rows), some)
    assert found.dtype == np.float64
    error = np.abs(found - (exact @ exact.T)[some])
    assert (error <= 4 * np.finfo(rows.dtype).eps * size[some] + 1e-300).all()


@settings(max_examples=40, deadline=None)
@given(rows=BLOCKS, data=st.data())
def test_compiled_products_do_not_depend_on_order_or_other_rows(rows, data):
    """The bits of a product follow from its two rows."""
    n = len(rows)
    order = data.draw(st.permutations(range(n)))
    some = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    whole = COMPILED.products([Strip.of(rows)], n)
    again = COMPILED.products([Strip.of(rows[order])], n)
    np.testing.assert_array_equal(again, whole[np.ix_(order, order)])
    found = COMPILED.products([Strip.of(rows)], n, some)
    np.testing.assert_array_equal(found, whole[some])


@BOTH
@pytest.mark.parametrize("n", [1, 3, 4, 9])
@pytest.mark.parametrize("less", [False, True])
def test_combiner_sums_rows_less_an_origin(loops, n, less):
    rows = list(block(n, 5000, np.float32, seed=0))
    origin = block(1, 5000, np.float32, seed=1)[0] if less else None
    c = np.linspace(-1, 2, n)
    out = np.empty(4990, np.float32)
    loops.combiner(rows, rows[0].dtype)(7, 4997, origin, c, out)
    exact = c @ (np.array(rows, float) - (origin if less else 0))[:, 7:4997]
    np.testing.assert_allclose(out, exact, atol=1e-4)


@BOTH
@pytest.mark.parametrize("n", [1, 4, 17, 70])
@pytest.mark.parametrize("width", [1, 15, 16, 33, 1024, 2049])
def test_functions_of_columns_add_squared_distances_to_their_values(loops, n, width):
    rows = block(n, width, np.float32, seed=n)
    weights = np.ones(n)
    for value in (
        lambda squares: loops.ranked_mean(rows, weights, squares),
        lambda squares: loops.nearest_mean(rows, max(1, n - 2), squares),
        lambda squares: loops.weighted_median(rows, weights, None, squares),
        lambda squares: loops.weighted_sum(rows, weights / n, squares),
        lambda squares: loops.weighted_ranks(rows, weights, np.ones_like, squares),
    ):
        squares = np.ones(n)
        values = value(squares)
        np.testing.assert_array_equal(values, value(None))
        exact = ((rows.astype(float) - values) ** 2).sum(axis=1) + 1
        np.testing.assert_allclose(squares, exact, rtol=1e-5)


@BOTH
@settings(max_examples=60, deadline=None)
@given(rows=BLOCKS)
def test_squares_apart_equal_float64(loops, rows):
    middle = rows.mean(axis=0)
    exact = ((rows - middle).astype(np.float64) ** 2).sum(axis=1)
    tolerance = 30 * np.finfo(rows.dtype).eps
    found = loops.squares_apart(rows, middle)
    np.testing.assert_allclose(found, exact, rtol=tolerance)


@settings(max_examples=60, deadline=None)
@given(rows=BLOCKS, data=st.data())
def test_order_statistics_with_and_without_numba_are_the_same_bits(rows, data):
    """Compiled or not: comparators and sums are the same, in the same order."""
    n, before = len(rows), rows.copy()
    coefficients = data.draw(
        st.lists(st.sampled_from([0, 1, 0.25]), min_size=n, max_size=n).filter(any)
    )
    k = data.draw(st.integers(1, n))
    for found, expected in (
        (
            COMPILED.ranked_mean(rows, coefficients),
            plain.ranked_mean(rows, coefficients),
        ),
        (COMPILED.nearest_mean(rows, k), plain.nearest_mean(rows, k)),
    ):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("n", [49, 70])
def test_order_statistics_of_many_rows_equal_a_sort(n):
    """Where NumPy sorts columns instead."""
    rows = block(n, 1500, np.float32, seed=0)
    in_order = np.sort(rows.astype(np.float64), axis=0)
    coefficients = [float(5 <= r < n - 5) for r in range(n)]
    found = COMPILED.ranked_mean(rows, coefficients)
    np.testing.assert_allclose(found, in_order[5:-5].mean(axis=0), atol=1e-5)
    expected = plain.nearest_mean(rows, n - 5)
    np.testing.assert_allclose(COMPILED.nearest_mean(rows, n - 5), expected, atol=1e-5)


@BOTH
@given(rows=BLOCKS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_non_finite_column_is_reported(loops, rows, data):
    i = data.draw(st.integers(0, rows.shape[0] - 1))
    c = data.draw(st.integers(0, rows.shape[1] - 1))
    rows[i, c] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    ranks = [float(r == len(rows) // 2) for r in range(len(rows))]
    for found in (loops.ranked_mean(rows, ranks), loops.nearest_mean(rows, 1)):
        assert np.flatnonzero(np.isnan(found)).tolist() == [c]


@BOTH
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ">f4", np.int32])
@pytest.mark.parametrize("less", [False, True])
def test_reader_converts_rows_of_any_dtype_and_layout(loops, kind, less):
    """Rows as they come in messages: of any dtype, and anywhere in memory."""
    rng = np.random.default_rng(0)
    given = np.round(100 * rng.standard_normal((5, 77))).astype(kind)
    rows = [*given[:3], np.repeat(given[3], 2)[::2]]
    raw = b"x" + given[4].tobytes()
    rows.append(np.frombuffer(raw, given.dtype, offset=1))  # not aligned
    origin = given[1] if less else None
    whole = np.empty((5, 77), np.float32)
    read = loops.reader(rows, np.dtype(np.float32))
    read(0, 77, origin, whole)
    out = np.empty((5, 70), np.float32)
    read(7, 77, origin, out)
    np.testing.assert_array_equal(out, whole[:, 7:])
    expected = given.astype(np.float64) - (given[1].astype(np.float64) if less else 0)
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_rows_of_unequal_lengths_are_refused_by_compiled_loops():
    """Compiled loops know where rows begin, and believe how long they are."""
    rows = block(5, 64, np.float32, seed=0)
    for ask in (
        lambda: COMPILED.squares_apart(rows, rows[0, :63]),
        lambda: COMPILED.weighted_median(rows, np.ones(5), rows[0, :63]),
        lambda: COMPILED.reader(rows, rows.dtype)(0, 64, rows[0, :63], rows.copy()),
        lambda: COMPILED.reader([rows[0], rows[1, :9]], rows.dtype)(
            0, 64, None, np.empty((2, 64), np.float32)
        ),
    ):
        with pytest.raises(ValueError, match="broadcast"):
            ask()


@pytest.mark.parametrize("rule", TABLE, ids=lambda rule: rule.spec)
def test_rule_with_and_without_numba_gives_the_same(rule, monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((13, 3000)).astype(np.float32)
    given = rule.given(np.ones(3000, np.float32))
    compiled = parse_aggregator(rule.spec).aggregate(rows, 2, **given)
    for user in (cpu, layer):
        monkeypatch.setattr(user, "cpu_primitives", lambda: plain)
    slow = parse_aggregator(rule.spec).aggregate(rows, 2, **given)
    np.testing.assert_allclose(compiled.vector, slow.vector, atol=2e-6)
    np.testing.assert_allclose(compiled.influence, slow.influence, atol=2e-5)
    np.testing.assert_allclose(compiled.distances, slow.distances, rtol=1e-4)


@BOTH
@settings(max_examples=60)
@given(
    x=BLOCKS,
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=23, max_size=23),
    guess=st.sampled_from([None, 0.0, 0.1, -9.0, np.inf, -np.inf, np.nan]),
)
def test_weighted_median_has_half_of_the_weight_on_either_side(
    loops, x, weights, guess
):
    """Of halves and whole numbers sums are exact, and exactly one half occurs."""
    w = np.array(weights[: len(x)])
    w[0] += not w.any()
    start = None if guess is None else np.full(x.shape[1], guess, x.dtype)
    found = loops.weighted_median(x, w, start)
    for column, value in zip(x.T[:40], found, strict=False):
        many = np.repeat(column.astype(np.float64), (2 * w).astype(int))
        assert value == np.median(many).astype(x.dtype)


@BOTH
def test_weighted_median_of_a_non_finite_column_is_nan(loops):
    x = np.array([[1.0, 1.0, 1.0], [np.nan, 2.0, np.inf], [3.0, 3.0, 3.0]])
    for weights in ([1.0, 1.0, 1.0], [1.0, 0.0, 1.0]):
        found = loops.weighted_median(x, np.array(weights))
        assert np.isnan(found).tolist() == [True, False, True] and found[1] == 2
