"""CorrectedMomentum against its recursion, and what happens to lost state."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from flwr_ctma.optim.momentum import CorrectedMomentum
from flwr_ctma.optim.schedules import Fixed, Paper

SHAPES = {"body.weight": (3, 2, 2), "bias": (2,), "scale": ()}


def gradients(t):
    """∇f(x; z_t) = A_t * x - c_t, and it counts how often it is asked."""
    rng = np.random.default_rng(t)
    a = {k: rng.uniform(0.5, 2.0, size=s) for k, s in SHAPES.items()}
    c = {k: rng.normal(size=s) for k, s in SHAPES.items()}

    def at(point):
        at.calls += 1
        return {k: a[k] * point[k] - c[k] for k in SHAPES}

    at.calls = 0
    return at


def point(t):
    rng = np.random.default_rng(1000 + t)
    return {k: rng.normal(size=s) for k, s in SHAPES.items()}


def flat(arrays):
    return np.concatenate([np.ravel(arrays[k]) for k in SHAPES])


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize(
    ("schedule", "beta"), [(Paper(), lambda t: 1 / t), (Fixed(), lambda t: 0.25)]
)
def test_momentum_equals_the_recursion_of_the_paper(schedule, beta, clip):
    def gradient(t, x):
        g = flat(gradients(t)(x))
        return g if clip is None else g * min(1.0, clip / np.linalg.norm(g))

    momentum, d = CorrectedMomentum(), np.zeros(15)
    for t in range(1, 50):
        momentum = momentum.at(point(t), gradients(t), schedule, clip)
        new = gradient(t, point(t))
        if t > 1:
            new = new + (1 - beta(t)) * (d - gradient(t, point(t - 1)))
        d = new
        np.testing.assert_allclose(flat(momentum.vector), d, rtol=0, atol=1e-12)
        assert momentum.count == t


def test_state_is_restored_to_the_bit():
    momentum = CorrectedMomentum().at(point(1), gradients(1)).at(point(2), gradients(2))
    record = momentum.record()
    again = CorrectedMomentum.read(
        ArrayRecord.inflate(record.deflate(), record.children)
    )
    assert again.count == 2
    for name, shape in SHAPES.items():
        assert again.vector[name].shape == shape
        assert np.array_equal(again.vector[name], momentum.vector[name])
        assert np.array_equal(again.point[name], momentum.point[name])


def test_momentum_has_the_dtype_of_the_model():
    x = {k: v.astype(np.float32) for k, v in point(1).items()}
    momentum = CorrectedMomentum().at(x, lambda p: p).at(x, lambda p: p)
    assert {v.dtype for v in momentum.vector.values()} == {np.dtype("float32")}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: None,
        lambda r: ArrayRecord(),
        lambda r: ArrayRecord({k: r[k] for k in r if k != "count"}),
        lambda r: ArrayRecord({k: r[k] for k in r if k != "vector.bias"}),
        lambda r: ArrayRecord({**r, "vector.bias": Array(np.ones(3))}),
        lambda r: ArrayRecord({**r, "vector.bias": Array(np.array([1, np.inf]))}),
        lambda r: ArrayRecord({**r, "more.bias": Array(np.ones(2))}),
        lambda r: ArrayRecord({**r, "bias": Array(np.ones(2))}),
        lambda r: ArrayRecord({**r, "count": Array(np.ones(2))}),
        lambda r: ArrayRecord(
            {**r, "point.bias": Array("float64", (2,), "numpy.ndarray", b"garbage")}
        ),
    ],
)
def test_lost_or_misfitting_state_is_discarded(spoil, caplog):
    record = spoil(CorrectedMomentum().at(point(1), gradients(1)).record())
    momentum = CorrectedMomentum.read(record)
    assert ("starts without state" in caplog.text) == (record is not None)
    assert momentum.count == 0
    gradient = gradients(2)
    momentum = momentum.at(point(2), gradient)
    assert gradient.calls == 1
    np.testing.assert_array_equal(flat(momentum.vector), flat(gradient(point(2))))


def test_state_of_another_model_is_discarded():
    momentum = CorrectedMomentum().at({"x": np.ones(3)}, lambda p: p)
    momentum = momentum.at(point(1), gradients(1))
    assert momentum.count == 1


def test_storm_beta_one_costs_one_gradient():
    momentum = CorrectedMomentum().at(point(1), gradients(1))
    gradient = gradients(2)
    momentum.at(point(2), gradient, Fixed(storm_beta=1.0))
    assert gradient.calls == 1


def test_clip_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"Found `clip = 0`"):
        CorrectedMomentum().at(point(1), gradients(1), clip=0)
