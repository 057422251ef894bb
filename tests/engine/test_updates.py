"""The stack of updates and what one can do with it, on the CPU and in torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators.ranks import NearestToMedian, Ranks, WeightedRanks
from flwr_ctma.engine.kernels import numpy as plain
from flwr_ctma.engine.kernels import torch as torch_primitives
from flwr_ctma.engine.torch import TorchStack
from flwr_ctma.engine.updates import Layer, Updates
from tests.helpers.table import everyone, few

NUMPY = [np.float16, np.float32, np.float64]
TORCH = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-12}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def stacks(x):
    """The same rows on every kind of stack."""
    cut = x.shape[1] // 3
    yield Updates.of(x)
    yield Updates.of(np.asfortranarray(x))
    yield Updates.of([Layer(list(x[:, :cut])), Layer(x[:, cut:])])
    yield Updates.of([Layer(x + 5.0, origin=np.full(x.shape[1], 5.0))])
    yield Updates(TorchStack(torch.tensor(x)))


def whole(vector):
    return np.concatenate([np.asarray(part) for part in vector])


@pytest.mark.parametrize("n", [1, 2, 7, 8, 17, 60])
def test_gram_and_combinations_equal_numpy(n):
    x, m, c = normal(n, 5000), normal(3, n, seed=1), normal(n, seed=2)
    again = normal(2, 3, seed=3)
    for rows in stacks(x):
        np.testing.assert_allclose(rows.gram(), x @ x.T, rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(whole(rows.combine(c)), c @ x, atol=1e-9)
        mixed = rows.mix(m)
        assert mixed.n == 3
        np.testing.assert_allclose(mixed.gram(), m @ x @ (m @ x).T, atol=1e-7)
        twice = mixed.mix(again).combine(np.array([1.0, 2.0]))
        expected = np.array([1.0, 2.0]) @ again @ m @ x
        np.testing.assert_allclose(whole(twice), expected, atol=1e-9)


@pytest.mark.parametrize("n", [3, 17, 60])
def test_squared_distances_equal_numpy(n):
    x = normal(n, 3000)
    expected = ((x[:, None] - x) ** 2).sum(axis=2)
    for rows in stacks(x):
        np.testing.assert_allclose(rows.squared_distances(), expected, atol=1e-8)


@pytest.mark.parametrize("dtype", TORCH)
def test_squared_distances_are_symmetric_to_the_bit(dtype):
    """Or rounding would decide which of two rows nearest to each other comes first."""
    x = torch.tensor(normal(5, 1009)).to(dtype)
    mixed = Updates.of(x).mix(normal(5, 5, seed=1))
    for rows in (Updates.of(x), mixed):
        apart = rows.squared_distances()
        np.testing.assert_array_equal(apart, apart.T)


@pytest.mark.parametrize(
    "kernel",
    [
        Ranks((0, 1, 1, 1, 0)),
        Ranks((0, 0.25, 1, 0.25, 0)),
        NearestToMedian(4),
        WeightedRanks(np.array([1.0, 2, 0, 4, 1]), lambda w: w),
    ],
    ids=lambda kernel: type(kernel).__name__,
)
def test_columns_return_distances_to_their_values(kernel):
    x, m = normal(5, 60_000), normal(5, 5, seed=1)
    for rows in stacks(x):
        for mixed, expected in ((rows, x), (rows.mix(m), m @ x)):
            found = mixed.columns(kernel)
            vector = whole(found.vector)
            np.testing.assert_allclose(
                vector, kernel.value(expected, plain), atol=1e-12
            )
            np.testing.assert_allclose(
                found.squared_distances, ((expected - vector) ** 2).sum(axis=1)
            )
            values = rows.stack.values(kernel, mixed.mixing)
            np.testing.assert_array_equal(whole(values), vector)


@pytest.mark.parametrize("n", [5, 9, 60])
def test_kernel_weights_times_rows_are_its_values(n):
    x = normal(n, 50)
    kernels = [
        Ranks(tuple(float(2 <= r < n - 2) for r in range(n))),
        NearestToMedian(n - 2),
        NearestToMedian(2),
        WeightedRanks(np.arange(n) + 0.5, lambda w: w**2),
    ]
    for kernel in kernels:
        values = (kernel.weights(x) * x).sum(axis=0)
        np.testing.assert_allclose(values, kernel.value(x, plain), atol=1e-12)
        torch_values = kernel.value(torch.tensor(x), torch_primitives)
        np.testing.assert_allclose(values, torch_values.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "rule", everyone(lambda rule: not (rule.referenced or rule.layered))
)
def test_layers_equal_one_matrix(rule):
    """Cut anywhere, with an origin or without: only rounding tells them apart."""
    x = normal(11, 501)
    origin = normal(501, seed=1)
    expected = rule.aggregate(x, 2)
    cuts = np.split(np.arange(501), [7, 300, 300])
    plain = [Layer(x[:, c]) for c in cuts]
    listed = [Layer(list(x[:, c])) for c in cuts]
    models = [Layer(list((x + origin)[:, c]), origin[c]) for c in cuts]
    for layers in (plain, listed, models, [plain[0], listed[1], *models[2:]]):
        found = rule.aggregate(Updates.of(layers), 2)
        assert [len(part) for part in found.vector] == [7, 293, 0, 201]
        np.testing.assert_allclose(whole(found.vector), expected.vector, atol=1e-4)
        np.testing.assert_allclose(found.distances, expected.distances, atol=1e-4)
        np.testing.assert_allclose(found.influence, expected.influence, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0.0, 100.0])  # the latter needs a pivot
@pytest.mark.parametrize("rule", ["ctma(cwmed)", "nnm(gm)", "cclip", "caf"])
def test_scaled_layers_equal_scaled_rows(rule, shift, dtype):
    x = (normal(7, 40) + shift).astype(dtype)
    origin, start = np.linspace(-1, 1, 20).astype(dtype), normal(40, seed=1)
    layers = [
        Layer(x[:, :20], scale=0.5),
        Layer(list(x[:, 20:]), origin, scale=0.25),
    ]
    scaled = np.hstack([0.5 * x[:, :20], 0.25 * (x[:, 20:] - origin)])
    rule = parse_aggregator(rule)
    needed = rule.needs_reference
    parts = Updates.of(layers, [start[:20], start[20:]] if needed else None)
    found = rule.aggregate(parts, f=2)
    expected = rule.aggregate(scaled, f=2, reference=start if needed else None)
    tolerance = 2e-4 if dtype == np.float32 else 1e-9
    near = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(np.concatenate(found.vector), expected.vector, **near)
    np.testing.assert_allclose(found.influence, expected.influence, atol=10 * tolerance)
    np.testing.assert_allclose(found.distances, expected.distances, **near)
    some, _ = parts.take(np.arange(3))
    np.testing.assert_allclose(some.gram(), scaled[:3] @ scaled[:3].T, rtol=tolerance)


@pytest.mark.parametrize("spec", ["ctma(gm)", "ctma(cwmed)", "krum", "nnm(cwmed)"])
def test_unmeasured_layers_do_not_count_in_distances(spec):
    """What decides are the measured columns; the others are combined alike."""
    rule = parse_aggregator(spec)
    x, other = normal(11, 30), 1e6 * normal(11, 20, seed=1)
    alone = rule.aggregate(Updates.of([Layer(x)]), f=2)
    found = rule.aggregate(
        Updates.of([Layer(list(other), measured=False), Layer(x)]), f=2
    )
    np.testing.assert_allclose(found.vector[1], alone.vector[0], atol=1e-12)
    np.testing.assert_allclose(found.distances, alone.distances, rtol=1e-6)
    if spec != "nnm(cwmed)":
        np.testing.assert_allclose(found.influence, alone.influence, atol=1e-12)
        np.testing.assert_allclose(found.vector[0], found.influence @ other, rtol=1e-9)


@pytest.mark.parametrize("spec", ["fltrust", "cclip(radius=3)", "ctma(cclip)"])
def test_reference_in_layers_equals_one_vector(spec):
    """Given by panel, relative to the origins as the result is; no client's row."""
    rule = parse_aggregator(spec)
    x, origin, reference = normal(11, 30), normal(30, seed=1), normal(30, seed=2)
    expected = rule.aggregate(x, f=2, reference=reference)
    layers = [
        Layer(list((x + origin)[:, :9]), origin[:9]),
        Layer(list((x + origin)[:, 9:]), origin[9:]),
    ]
    found = rule.aggregate(Updates.of(layers, [reference[:9], reference[9:]]), f=2)
    np.testing.assert_allclose(whole(found.vector), expected.vector, atol=1e-9)
    assert found.influence.shape == found.distances.shape == (11,)
    np.testing.assert_allclose(found.influence, expected.influence, atol=1e-9)


def test_influence_of_mixed_updates_is_that_of_the_clients():
    x, m = normal(6, 9), np.repeat(np.eye(3), 2, axis=1) / 2
    rows = Updates.of(x).mix(m)
    found = parse_aggregator("ctma(gm)").aggregate(rows, f=1)
    assert found.influence.shape == (6,)
    assert found.distances.shape == (3,)
    np.testing.assert_allclose(whole(found.vector), found.influence @ x)


@pytest.mark.parametrize("dtype", NUMPY, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("rule", everyone())
def test_numpy_updates_give_a_numpy_result(rule, dtype):
    x, reference = normal(11, 40).astype(dtype), normal(40, seed=1)
    given = rule.given(reference)
    found = rule(x, 2, **given)
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (dtype, (40,))
    exact = rule(x.astype(np.float64), 2, **given)
    slack = max(EPS[dtype.__name__], 2e-5 * rule.flat)
    np.testing.assert_allclose(found, exact, atol=slack, rtol=slack)


@pytest.mark.parametrize("dtype", TORCH, ids=str)
@pytest.mark.parametrize("rule", everyone())
def test_torch_updates_give_a_torch_result(rule, dtype):
    x = torch.tensor(normal(11, 40)).to(dtype).requires_grad_()
    reference = torch.tensor(normal(40, seed=1))
    found = rule(x, 2, **rule.given(reference))
    assert isinstance(found, torch.Tensor)
    assert (found.dtype, found.shape, found.device) == (dtype, (40,), x.device)
    assert not found.requires_grad
    exact = rule(x.detach().double().numpy(), 2, **rule.given(reference.numpy()))
    slack = max(EPS[str(dtype).partition(".")[2]], 2e-5 * rule.flat)
    np.testing.assert_allclose(found.double(), exact, atol=slack, rtol=slack)


@pytest.mark.parametrize("rule", everyone())
def test_views_of_any_layout_give_the_same(rule):
    """A transpose, every other row and column, and rows in reverse are only views."""
    x, reference = normal(22, 80), normal(40, seed=1)
    given = rule.given(reference)
    for view in (
        np.asfortranarray(x[:11, :40]),
        x[::2, ::2],
        x[10::-1, 39::-1],
        np.broadcast_to(x[:11, :1], (11, 40)),
    ):
        expected = rule(view.copy(), 2, **given)
        np.testing.assert_allclose(rule(view, 2, **given), expected, atol=2e-5)
        if min(view.strides) > 0:
            tensor = rule(torch.from_numpy(view), 2, **given).numpy()
            np.testing.assert_allclose(tensor, expected, atol=2e-5)


@pytest.mark.parametrize("rule", everyone())
def test_torch_stack_equals_the_cpu_stack(rule):
    """What runs on a GPU, run on the CPU: to float32's digits."""
    x = normal(11, 300).astype(np.float32)
    rows = Updates(TorchStack(torch.tensor(x)))
    if rule.referenced:
        stack = TorchStack(torch.tensor(np.vstack([x, x.mean(axis=0)])))
        rows = Updates(stack, np.eye(11, 12), 11)
    found = rule.aggregate(rows, 2)
    expected = rule.aggregate(x, 2, **rule.given(x.mean(axis=0)))
    np.testing.assert_allclose(found.vector[0], expected.vector, atol=3e-5)
    np.testing.assert_allclose(found.influence, expected.influence, atol=1e-5)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-4)


@few
@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 999))
def test_pivot_keeps_digits_of_rows_far_from_zero(n, d, seed):
    """Far from zero inner products are taken about a row; about zero they agree."""
    x = normal(n, 1000 * d, seed=seed)
    near, far = Updates.of(x), Updates.of(x + 1e3)
    if n > 1:
        assert far.stack.moments.pivot is not None
    np.testing.assert_allclose(
        far.squared_distances(), near.squared_distances(), rtol=1e-9, atol=1e-6
    )
    np.testing.assert_allclose(far.gram(), (x + 1e3) @ (x + 1e3).T, rtol=1e-9)
    m = normal(3, n, seed=seed)
    np.testing.assert_allclose(
        far.mix(m).gram(), m @ (x + 1e3) @ (m @ (x + 1e3)).T, rtol=1e-9
    )


def test_integer_layers_are_averaged_as_float64():
    counts = [np.array([2, 3]), np.array([4, 9]), np.array([6, 2**40])]
    (found,) = parse_aggregator("cwmed")(Updates.of([Layer(counts)]), f=1)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [4.0, 9.0])


@pytest.mark.parametrize(
    ("name", "value"), [("allow_tf32", True), ("fp32_precision", "tf32")]
)
def test_precision_setting_of_torch_does_not_change(name, value):
    """Whether it was set by its old name or its new one, which torch does not mix."""
    script = f"""
import torch
from flwr_ctma.aggregators import CTMA, CwMed
setting = torch.backends.cuda.matmul
setting.{name} = {value!r}
CTMA(CwMed())(torch.randn(9, 40).bfloat16(), f=2)
assert setting.{name} == {value!r}
"""
    if not hasattr(torch.backends.cuda.matmul, name):
        pytest.skip("a name that this version of torch does not know")
    subprocess.run([sys.executable, "-c", script], check=True)
