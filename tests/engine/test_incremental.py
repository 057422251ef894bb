"""The latest rows of all clients, against the same rows aggregated at once."""

import numpy as np
import pytest

from flwr_ctma.aggregators import Budget, parse_aggregator
from flwr_ctma.engine.incremental import IncrementalStack
from flwr_ctma.engine.updates import Updates


def arrive(
    latest: IncrementalStack, rng: np.random.Generator, scale: float = 1.0
) -> int:
    i = int(rng.integers(latest.n))
    row = [
        (scale * rng.normal(size=p.width)).astype(p.dtype) + 0.5 for p in latest.layers
    ]
    latest.replace(i, row)
    return i


def aggregate(latest: IncrementalStack, rule: str, counts: np.ndarray) -> np.ndarray:
    rows = Updates(latest)
    point = parse_aggregator(rule).solve(rows, Budget(latest.n, 0.3, counts))
    return np.concatenate(point.vector(latest))


def at_once(latest: IncrementalStack, rule: str, counts: np.ndarray) -> np.ndarray:
    rows = np.hstack([np.asarray(p.rows) for p in latest.layers]).astype(np.float64)
    return parse_aggregator(rule)(rows, f=0.3, weights=counts)


@pytest.mark.parametrize("rule", ["ctma(gm)", "ctma(cwmed)", "gm", "cwmed", "mean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rule_after_each_arrival_equals_the_rule_of_all_rows(rule, dtype) -> None:
    rng = np.random.default_rng(0)
    latest = IncrementalStack(9, [np.zeros(40, dtype), np.zeros(7, dtype)])
    counts = np.zeros(9)
    for k in range(80):
        counts[arrive(latest, rng)] += 1
        if k < 20:  # two rows are as far as each other from what is between them
            continue
        expected = at_once(latest, rule, counts)
        tolerance = 1e-5 if dtype is np.float32 else 1e-6
        np.testing.assert_allclose(
            aggregate(latest, rule, counts), expected, rtol=0, atol=tolerance
        )


def test_moments_after_ten_thousand_arrivals_are_exact() -> None:
    """Sizes go up and down by a million: what a large row adds must go with it."""
    rng = np.random.default_rng(1)
    latest = IncrementalStack(9, [np.zeros(30, np.float32)])
    counts = np.zeros(9)
    for k in range(10_000):
        counts[arrive(latest, rng, scale=1e6 if k % 100 == 0 else 1.0)] += 1
        if k % 4 == 0:
            aggregate(latest, "ctma(gm)", counts)
    for _ in range(100):
        counts[arrive(latest, rng)] += 1
        found = aggregate(latest, "ctma(gm)", counts)
    fresh = np.asarray(latest.layers[0].rows, np.float64)
    np.testing.assert_allclose(latest.moments.inner(), fresh @ fresh.T, atol=1e-4)
    np.testing.assert_allclose(found, at_once(latest, "ctma(gm)", counts), atol=1e-6)


def test_rows_nearly_equal_keep_their_distances() -> None:
    latest = IncrementalStack(5, [np.zeros(1000, np.float32)])
    rng = np.random.default_rng(2)
    rows = (1 + 1e-4 * rng.normal(size=(5, 1000))).astype(np.float32)
    for i, row in enumerate(rows):
        latest.replace(i, [row])
    exact = rows.astype(np.float64)
    apart = ((exact[:, None] - exact[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(Updates(latest).squared_distances(), apart, rtol=1e-4)


def test_stack_resumes_from_its_state_to_the_bit() -> None:
    rng = np.random.default_rng(5)
    latest, counts = (
        IncrementalStack(5, [np.zeros(30, np.float32), np.zeros(3)]),
        np.ones(5),
    )
    for _ in range(40):
        counts[arrive(latest, rng)] += 1
        aggregate(latest, "cwmed", counts)
        aggregate(latest, "mean", counts)
    counts[arrive(latest, rng)] += 1
    again, other = (
        IncrementalStack.from_state(latest.state_dict()),
        np.random.default_rng(6),
    )
    for rows, rng in ((latest, np.random.default_rng(6)), (again, other)):
        arrive(rows, rng)
    ours, theirs = (aggregate(rows, "ctma(gm)", counts) for rows in (latest, again))
    np.testing.assert_array_equal(ours, theirs)
    assert not np.shares_memory(latest.layers[0].rows, again.layers[0].rows)


def test_dropped_rows_do_not_change_the_moments() -> None:
    rng = np.random.default_rng(7)
    rows, counts = IncrementalStack(6, [np.zeros(30)]), np.arange(1.0, 7.0)
    for _ in range(40):
        arrive(rows, rng)
    aggregate(rows, "mean", counts)
    kept = np.asarray(rows.layers[0].rows)[[4, 1, 5]]
    rows.keep([4, 1, 5])
    for rule in ("mean", "ctma(gm)"):
        found = aggregate(rows, rule, counts[:3])
        expected = parse_aggregator(rule)(kept, f=0.3, weights=counts[:3])
        np.testing.assert_allclose(found, expected, atol=1e-6)
