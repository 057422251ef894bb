"""Rows on Ray workers: every rule, against the same rows in this process."""

import itertools
import os
import signal
import sys

import numpy as np
import pytest
import ray
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.engine import ray as sharded
from flwr_ctma.engine.actors import Unavailable
from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.ray import RayBackend
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy
from flwr_ctma.strategy.backends import parse_backend
from tests.helpers.table import everyone

N, WIDTH = 11, 50_000  # three blocks of columns in float64, two in float32


@pytest.fixture(scope="module")
def backend():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield RayBackend(workers=2, cpus=0)
    ray.shutdown()


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def both(backend, layers, reference=None):
    """The same updates in this process and on workers."""
    local = Updates.of(layers, reference)
    stack = backend.place(local.stack)
    return local, Updates(stack, local.mixing, local.reference)


@pytest.fixture(scope="module")
def stacks(backend):
    """Rows with and without a reference, as clients send them and as a matrix."""
    x, origin = normal(N, WIDTH), normal(WIDTH, seed=1)
    rows = list(x + origin)
    layers = [
        Layer([r[:9] for r in rows], origin[:9]),
        Layer([r[9:9] for r in rows], origin[9:9]),
        Layer([r[9:20] for r in rows], origin[9:20], measured=False),
        Layer(x[:, 20:]),
    ]
    reference = [0.1 * origin[:9], origin[9:9], origin[9:20], 0.1 * origin[20:]]
    return {
        False: both(backend, layers),
        True: both(backend, layers, reference),
    }


def check(rule, local, remote, f, weights=None):
    expected = rule.aggregate(local, f, weights=weights)
    found = rule.aggregate(remote, f, weights=weights)
    assert [len(part) for part in found.vector] == [9, 0, 11, WIDTH - 20]
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-12)
    # A tolerance of its own ends the iterations of the geometric median.
    slack = 1e-6 if rule.flat else 1e-13
    np.testing.assert_allclose(found.influence, expected.influence, atol=slack)
    for part, same in zip(found.vector, expected.vector, strict=True):
        np.testing.assert_allclose(part, same, rtol=0, atol=10 * slack)


@pytest.mark.parametrize("rule", everyone())
def test_rule_on_workers_equals_the_local_rule(rule, stacks):
    check(rule, *stacks[rule.referenced], 2)


@pytest.mark.parametrize("rule", everyone(lambda rule: rule.weighted))
def test_weighted_rule_on_workers_equals_the_local_rule(rule, stacks):
    check(rule, *stacks[rule.referenced], 0.2, weights=np.arange(1.0, 1 + N))


def test_columnwise_results_on_workers_are_the_same_bits(stacks):
    """No sum runs across coordinates: neither in medians nor in weighted sums."""
    from flwr_ctma.aggregators.ranks import NearestToMedian, Ranks

    local, remote = stacks[False]
    c = normal(N, seed=2)
    for kernel in (Ranks((0,) * 5 + (1,) + (0,) * 5), NearestToMedian(9)):
        for here, there in zip(
            local.columns(kernel).vector, remote.columns(kernel).vector, strict=True
        ):
            np.testing.assert_array_equal(here, there)
    for here, there in zip(local.combine(c), remote.combine(c), strict=True):
        np.testing.assert_array_equal(here, there)


def test_non_finite_row_on_workers_is_refused_with_its_index(backend):
    x = normal(5, WIDTH)
    x[3, -1] = np.nan
    _, remote = both(backend, [Layer(x)])
    for ask in (remote.gram, lambda: remote.combine(np.ones(5))):
        with pytest.raises(ValueError, match=r"Found `updates = \{3: nan\}`"):
            ask()


def test_rows_that_are_too_large_for_float32_are_scaled(backend):
    x = normal(7, 70_000, dtype=np.float32)
    x[0] *= 1e25
    local, remote = both(backend, [Layer(list(x))])
    np.testing.assert_allclose(remote.gram(), local.gram(), rtol=1e-9)


def test_half_precision_is_computed_in_float32(backend):
    """Sums of 70 000 squares of some hundreds overflow float16, and lose its digits."""
    x = (100 + 10 * normal(7, 70_000)).astype(np.float16)
    local, remote = both(backend, [Layer(list(x), np.zeros(70_000, np.float16))])
    exact = Updates.of(x.astype(np.float64))
    np.testing.assert_allclose(remote.gram(), exact.gram(), rtol=1e-6)
    (found,) = remote.combine(np.full(7, 1 / 7))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, local.combine(np.full(7, 1 / 7))[0])
    np.testing.assert_allclose(found, x.mean(axis=0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("width", [1, 70_000])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_cover_all_columns_once_in_order(width, count):
    rows = np.zeros((5, width))
    stack = CpuStack([Layer(rows), Layer(rows[:, :0]), Layer(rows)])
    shards = sharded._cut(stack, count)
    assert 1 <= len(shards) <= count and all(shards)
    ranges = [span for shard in shards for span in shard]
    for k in (0, 2):
        ends = [(a, b) for layer, a, b in ranges if layer == k]
        assert ends[0][0] == 0 and ends[-1][1] == width
        assert all(b == a for (_, b), (a, _) in itertools.pairwise(ends))
    assert ranges == sorted(ranges)


def fatal(flag=None):
    """A kernel that kills the worker it runs on: always, or once."""

    class Fatal:  # a local class travels by value to workers, which import no tests
        def value(self, block, primitives, squares=None):
            if flag is None or not flag.exists():
                if flag:
                    flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return block[0]

    return Fatal()


def test_shard_of_a_killed_worker_is_rebuilt(backend, tmp_path):
    local, remote = both(backend, [Layer(normal(5, 90_000))])
    other = both(backend, [Layer(normal(3, 90_000))])[1]
    (found,) = remote.stack.values(fatal(tmp_path / "dead"), None)
    np.testing.assert_array_equal(found, local.stack.layers[0].rows[0])
    np.testing.assert_allclose(remote.gram(), local.gram(), rtol=1e-12)
    (row,) = other.combine(np.array([0.0, 1.0, 0.0]))  # its worker died as well
    np.testing.assert_array_equal(row, normal(3, 90_000)[1])


def test_taken_rows_outlive_their_worker(backend):
    local, remote = both(backend, [Layer(normal(9, 90_000))])
    some = np.array([1, 4, 8])
    (part, _), (same, _) = remote.take(some), local.take(some)
    np.testing.assert_allclose(part.gram(), same.gram(), rtol=1e-12)
    ray.kill(backend._pool.workers[1])
    np.testing.assert_allclose(part.gram(), same.gram(), rtol=1e-12)
    (late, _) = remote.take(some)  # of a shard that its new worker does not have
    np.testing.assert_array_equal(late.combine(np.ones(3)), same.combine(np.ones(3)))


def test_shard_that_kills_every_worker_raises_unavailable(backend, monkeypatch):
    monkeypatch.setattr(sharded, "_REBUILDS", 1)
    _, remote = both(backend, [Layer(normal(5, 100))])
    with pytest.raises(Unavailable, match="1 of 1 shards were lost 2 times"):
        remote.stack.values(fatal(), None)


def test_workers_without_free_cores_raise_unavailable(backend):
    greedy = RayBackend(workers=2, cpus=2, timeout=2)
    with pytest.raises(Unavailable, match="no cores are free"):
        greedy.place(CpuStack([Layer(normal(5, 100))]))


def test_shard_whose_core_is_taken_moves_to_another_worker(backend):

    class Greedy:  # takes the core of a worker as soon as it is free
        def hello(self):
            return True

    scarce = RayBackend(workers=2, cpus=1, timeout=300)
    local, remote = both(scarce, [Layer(normal(5, 90_000))])
    scarce._pool._timeout = 2  # for a core that never comes
    greedy = ray.remote(Greedy).options(num_cpus=1).remote()
    ray.kill(scarce._pool.workers[0])
    assert ray.get(greedy.hello.remote())
    np.testing.assert_allclose(remote.gram(), local.gram(), rtol=1e-12)
    assert scarce._pool.workers[0] is scarce._pool.workers[1]
    c = normal(5)
    np.testing.assert_array_equal(remote.combine(c)[0], local.combine(c)[0])


def test_workers_read_rows_without_a_copy(backend):
    """Views that cannot be written to: a copy of its own a worker could write to."""
    rows = list(normal(5, 90_000))
    _, remote = both(backend, [Layer(rows, rows[0])])

    def writeable(worker, key):
        (layer,) = worker._stacks[key].layers
        return [row.flags.writeable for row in (*layer.rows, layer.origin)]

    for i, worker in enumerate(backend._pool.workers):
        found = worker.__ray_call__.remote(writeable, (remote.stack._key, i))
        assert ray.get(found) == [False] * 6


def test_workers_free_rows_of_a_deleted_stack(backend):
    _, remote = both(backend, [Layer(normal(5, 100))])
    worker, key = backend._pool.workers[0], remote.stack._key
    assert ray.get(worker.ask.remote((key, 0), "largest", ())) is not None
    del remote
    assert ray.get(worker.ask.remote((key, 0), "largest", ())) is None


class Fading:
    """A backend whose first worker is killed when the rows are there."""

    def __init__(self, backend):
        self.backend = backend

    def open_round(self, schema, needs_products):
        return self

    def add(self, replies, waiting):
        pass

    def place(self, rows, keys):
        stack = self.backend.place(rows)
        ray.kill(self.backend._pool.workers[0])
        return stack


def run(strategy, rounds=2):
    app = ClientApp()

    @app.train()
    def train(message, context):
        seed = context.node_config["partition-id"]
        w = message.content["arrays"]["w"].numpy()
        near = w + 0.01 * normal(*w.shape, seed=seed, dtype=np.float32)
        arrays = ArrayRecord({"w": Array(near)})
        content = {"arrays": arrays, "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    initial = ArrayRecord({"w": Array(np.zeros((300, 500), np.float32))})
    result = strategy.start(InProcessGrid(app, 7), initial, num_rounds=rounds)
    return result.arrays["w"].numpy()


def robust(backend):
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=7)
    return RobustStrategy(inner, num_malicious_nodes=2, backend=backend)


def test_run_on_workers_equals_the_local_run(backend):
    np.testing.assert_allclose(run(robust(backend)), run(robust("local")), atol=1e-7)


def test_run_with_a_lost_worker_equals_the_local_run(backend):
    strategy = robust(backend)
    strategy.backend = Fading(backend)
    np.testing.assert_allclose(run(strategy), run(robust("local")), atol=1e-7)


def test_round_without_workers_keeps_the_model(backend, monkeypatch):
    monkeypatch.setattr(sharded, "_REBUILDS", 0)
    strategy = robust(backend)
    strategy.backend = Fading(backend)
    with pytest.raises(RuntimeError, match="7 replies were accepted in all"):
        run(strategy, rounds=1)


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("dask", "backend"),
        ("ray(workers=0)", "workers"),
        ("ray(cpus=-1)", "cpus"),
        ("ray(timeout=0)", "timeout"),
        (4, "backend"),
    ],
)
def test_invalid_backend_is_refused(backend, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        RobustStrategy(FedAvg(), num_malicious_nodes=1, backend=backend)


def test_backend_without_ray_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"Install Ray: `pip install"):
        RobustStrategy(FedAvg(), num_malicious_nodes=1, backend="ray")


def test_backend_is_parsed_from_its_spelling():
    assert parse_backend("ray(workers=3)") == RayBackend(workers=3)
    assert parse_backend("ray(address=auto)").address == "auto"
