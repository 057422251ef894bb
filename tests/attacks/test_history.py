"""Attacks that use earlier global models, against naive loops."""

import math

import numpy as np
import pytest

from flwr_ctma.attacks import ROP, HybridSparse, Knowledge, PoisonedFL
from flwr_ctma.attacks.alie import largest_deviation

D = 12


def walk(rounds, seed=0, d=D):
    """Return global models of a random walk."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(rounds, d)), axis=0)


def act(attack, models, honest=None, f=2, seed=1):
    """Return what the attack sends in each round, and its memory."""
    memory, sent = {}, []
    for number, model in enumerate(models, start=1):
        rows = np.ones((3, D)) if honest is None else honest
        own = np.full((f, len(model)), 7.0)
        rng = np.random.default_rng([seed, number])
        known = Knowledge(rows, own, rng, None, number, model, memory)
        sent.append(attack.collude(known).copy())
    return sent, memory


def test_poisonedfl_against_a_loop_over_coordinates():
    models = walk(6)
    sent, memory = act(PoisonedFL(scale=3.0, period=100), models)
    np.testing.assert_array_equal(sent[0], np.full((2, D), 7.0))
    signs = memory["poisonedfl(scale=3.0, period=100)"]["signs"]
    assert set(signs) == {-1, 1}
    lie = [0.0] * D
    for t in range(1, 6):
        g = [models[t][j] - models[t - 1][j] for j in range(D)]
        size = math.sqrt(sum(x * x for x in g))
        length = math.sqrt(sum(x * x for x in lie))
        v = [abs(g[j] - (lie[j] * size / length if length else 0)) for j in range(D)]
        norm = math.sqrt(sum(x * x for x in v))
        lie = [3.0 * size * v[j] * signs[j] / norm for j in range(D)]
        np.testing.assert_allclose(sent[t], [lie, lie])


def test_poisonedfl_shrinks_where_the_model_does_not_follow():
    models = walk(13)
    _, memory = act(PoisonedFL(scale=1.0, period=4), models)
    (kept,) = memory.values()
    # The first of three tests shrinks it; 0.7² would be below 0.5.
    assert kept["scale"] == 0.7
    assert act(PoisonedFL(scale=8.0, period=4), models)[1].popitem()[1][
        "scale"
    ] == pytest.approx(8 * 0.7**3)


def test_poisonedfl_keeps_its_size_where_the_model_follows():
    attack = PoisonedFL(scale=1.0, period=4)
    _, memory = act(attack, walk(1))
    signs = memory[str(attack)]["signs"]
    models = [t * signs + 0.01 * walk(1)[0] for t in range(13)]
    _, memory = act(attack, models)
    assert memory[str(attack)]["scale"] == 1.0


def rop_by_hand(mean, last, spread, z, angle, pi, lamb):
    place = pi * last + (1 - pi) * mean
    reference = lamb * last + (1 - lamb) * mean
    ones = np.ones(len(mean))
    across = ones - reference * (ones @ reference) / (reference @ reference)
    turned = math.sin(math.radians(angle)) * across / np.linalg.norm(across)
    turned = turned + math.cos(math.radians(angle)) * reference / np.linalg.norm(
        reference
    )
    return place + z * spread * turned


@pytest.mark.parametrize("angle", [90.0, 180.0, 30.0])
def test_rop_by_hand(angle):
    honest = np.random.default_rng(2).normal(size=(5, D)) + 0.5
    models = walk(3)
    attack = ROP(z=2.0, angle=angle, relocation=0.8, reference=0.9)
    sent, _ = act(attack, models, honest)
    mean = honest.mean(axis=0)
    spread = math.sqrt(((honest - mean) ** 2).sum() / len(honest))
    first = rop_by_hand(mean, np.zeros(D), spread, 2.0, angle, 0.8, 0.0)
    np.testing.assert_allclose(sent[0], [first, first])
    for t in (1, 2):
        last = models[t] - models[t - 1]
        expected = rop_by_hand(mean, last, spread, 2.0, angle, 0.8, 0.9)
        np.testing.assert_allclose(sent[t], [expected, expected])


def test_rop_is_orthogonal_to_its_reference_and_beside_the_last_step():
    honest = np.random.default_rng(2).normal(size=(5, D)) + 0.5
    models = walk(2)
    sent, _ = act(ROP(reference=1.0), models, honest)
    last = models[1] - models[0]
    assert abs((sent[1][0] - last) @ last) < 1e-9


def test_sparse_is_alie_with_a_mask_that_stays():
    honest = np.random.default_rng(2).normal(size=(5, D)) + 0.5
    models = walk(3)
    sent, memory = act(HybridSparse(scale=9.0, share=0.25), models, honest)
    saliency = np.abs(models[0] * honest.mean(axis=0))
    largest = sorted(range(D), key=lambda j: -saliency[j])[:3]
    z = largest_deviation(7, 2)
    factors = [9.0 if j in largest else z for j in range(D)]
    expected = honest.mean(axis=0) - np.array(factors) * honest.std(axis=0)
    for rows in sent:
        np.testing.assert_allclose(rows, [expected, expected])
    (kept,) = memory.values()
    assert sorted(kept["mask"]) == sorted(largest)


@pytest.mark.parametrize("attack", [PoisonedFL(), ROP(), HybridSparse()], ids=str)
def test_attack_without_a_global_model_says_how(attack):
    with pytest.raises(ValueError, match=r"Knowledge\(…, model=…\)"):
        attack(np.ones((3, 2)), 1)


@pytest.mark.parametrize("attack", [PoisonedFL(), ROP(), HybridSparse()], ids=str)
def test_models_of_float32_stay_float32(attack):
    models = walk(3).astype(np.float32)
    honest = np.random.default_rng(2).normal(size=(5, D)).astype(np.float32)
    sent, _ = act(attack, models, honest)
    assert all(rows.dtype == np.float32 and rows.shape == (2, D) for rows in sent)
    assert all(np.isfinite(rows).all() for rows in sent)
