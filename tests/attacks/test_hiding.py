"""Colluders that hide, and what hiding is worth against the ledger."""

import numpy as np
import pytest

from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import IPM, Camouflage, Drift, Frame, Jitter, Knowledge
from flwr_ctma.tracking.ledger import Ledger

N, F, D = 17, 5, 300


def rng(seed=0):
    return np.random.default_rng(seed)


def rounds_of(attack, rounds=60):
    """Return the ledger and the distances of `rounds` rounds under ctma(gm)."""
    generator, rule, ledger = rng(), parse_aggregator("ctma(gm)"), Ledger()
    center = np.zeros(D)
    for _ in range(rounds):
        honest = generator.normal(size=(N - F, D)) + 0.1
        rows = np.vstack([attack(honest, F, generator), honest])
        found = rule.aggregate(rows, f=F)
        distances = np.linalg.norm(rows - center, axis=1)
        ledger.note(list(range(N)), distances=distances, f=F, predictable=True)
        center = found.vector
    return ledger


def test_jitter_adds_noise_of_the_honest_spread_to_each_colluder():
    honest = rng().normal(size=(10, 20_000)) * 3
    sent = Jitter(IPM(epsilon=0.5), scale=0.2)(honest, 4, rng(1))
    noise = (sent + 0.5 * honest.mean(axis=0)) / honest.std(axis=0)
    assert noise.std(axis=1) == pytest.approx(np.full(4, 0.2), rel=0.05)
    assert abs(np.corrcoef(noise) - np.eye(4)).max() < 0.05


def test_jitter_of_scale_zero_is_the_attack():
    honest = rng().normal(size=(5, 3))
    np.testing.assert_array_equal(
        Jitter(IPM(), scale=0.0)(honest, 2, rng()), IPM()(honest, 2, rng())
    )


def test_drift_grows_linearly_from_its_start():
    honest = np.array([[1.0], [3.0]])
    attack = Drift(IPM(epsilon=1.0), rounds=4, start=3)
    sent = [
        float(
            attack.collude(
                Knowledge(honest, honest[:1], rng(), server_round=server_round)
            )[0, 0]
        )
        for server_round in range(1, 9)
    ]
    assert sent == [2, 2, 1, 0, -1, -2, -2, -2]


def test_camouflage_has_an_honest_distance_and_leans_as_the_attack():
    honest = rng().normal(size=(12, D)) + 0.1
    mean = honest.mean(axis=0)
    sent = Camouflage(IPM(epsilon=9.0), lean=0.5)(honest, 5, rng())
    e = -mean / np.linalg.norm(mean)
    radius = np.mean([np.linalg.norm(row - mean) for row in honest])
    centre = mean + 5 / 12 * 0.5 * radius * e
    distances = [np.linalg.norm(row - centre) for row in honest]
    for row in sent:
        r = (row - centre) @ e / 0.5
        assert np.isclose(distances, r).any()
        across = np.linalg.norm(row - centre - 0.5 * r * e)
        assert across**2 == pytest.approx(0.75 * r**2 / (1 - 2 / 17))
    assert np.abs(np.corrcoef(sent) - np.eye(5)).max() < 0.5


def test_camouflage_keeps_suspicion_low():
    """60 rounds find the plain attack, and no suspect behind the camouflage."""
    malicious = set(range(F))
    plain = rounds_of(IPM(epsilon=9.0))
    assert set(plain.suspects()) == malicious
    hidden = rounds_of(Camouflage(IPM(epsilon=9.0)))
    assert not set(hidden.suspects()) & malicious


def test_frame_has_an_honest_distance_and_leans_away_from_one_client():
    honest = rng().normal(size=(12, 3000)) + 0.1
    mean = honest.mean(axis=0)
    sent = Frame(client=2, lean=0.45)(honest, 5, rng(1))
    distances = np.linalg.norm(honest - mean, axis=1)
    found = np.linalg.norm(sent - mean, axis=1)
    assert found == pytest.approx(np.full(5, distances.mean()), rel=0.05)
    towards = (honest - mean) / distances[:, None]
    leans = (sent - mean) @ towards.T / found[:, None]
    assert leans[:, 2] == pytest.approx(np.full(5, -0.45), abs=0.03)
    assert abs(np.delete(leans, 2, axis=1)).max() < 0.15


def test_frame_makes_the_framed_client_the_farthest():
    honest = rng().normal(size=(12, D)) + 0.1
    rule = parse_aggregator("ctma(gm)")
    farthest = []
    for client in range(12):
        rows = np.vstack([honest, Frame(client=client)(honest, 5, rng(1))])
        farthest.append(int(rule.aggregate(rows, f=5).distances[:12].argmax()))
    assert np.mean(np.array(farthest) == np.arange(12)) > 0.7
