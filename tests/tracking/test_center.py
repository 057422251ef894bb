"""The center that the replies of a round cannot move."""

import numpy as np
import pytest

from flwr_ctma.tracking.center import PreviousUpdate


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_distances_against_numpy(dtype):
    rng = np.random.default_rng(0)
    origin = [rng.normal(size=7).astype(dtype), rng.normal(size=3).astype(dtype)]
    update = [rng.normal(size=7), rng.normal(size=3)]
    rows = [[o + rng.normal(size=o.size).astype(dtype) for o in origin] for _ in "abcd"]
    center = PreviousUpdate()
    assert center.distances(rows, origin) is None
    center.keep(update)
    gaps = [np.concatenate(r) - np.concatenate(origin) for r in rows]
    expected = [np.linalg.norm(gap - np.concatenate(update)) for gap in gaps]
    np.testing.assert_allclose(center.distances(rows, origin), expected, rtol=2e-3)


def test_a_large_model_is_sampled_where_clients_cannot_know():
    center, origin = PreviousUpdate(size=100), [np.zeros(1500), np.zeros(501)]
    starts = set()
    for _ in range(60):
        center.keep(origin)
        found = center.distances([[np.ones(1500), np.ones(501)]], origin)
        assert 90 <= found[0] ** 2 <= 100
        starts.add(center.state_dict()["start"])
    assert len(starts) > 10


def test_a_model_of_another_shape_gives_no_distance():
    center = PreviousUpdate()
    center.keep([np.zeros(3)])
    assert center.distances([[np.ones(4)]], [np.zeros(4)]) is None


def test_a_restored_center_gives_the_same_distances():
    center, again = PreviousUpdate(size=5), PreviousUpdate(size=5)
    center.keep([np.arange(33.0)])
    again.load_state_dict(center.state_dict())
    rows, origin = [[np.ones(33)], [np.arange(33.0)]], [np.ones(33)]
    left, right = (c.distances(rows, origin).tolist() for c in (center, again))
    assert left == right
