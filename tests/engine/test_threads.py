"""Tasks on all cores."""

import threading

import pytest

from flwr_ctma.engine import threads


@pytest.fixture(params=["1", "2", "5"])
def count(request, monkeypatch):
    monkeypatch.setenv("FLWR_CTMA_NUM_THREADS", request.param)
    threads._pool.cache_clear()
    yield int(request.param)
    threads._pool.cache_clear()


@pytest.mark.parametrize("items", [0, 1, 2, 100])
def test_run_returns_results_in_order_of_items(count, items):
    assert threads.run(lambda i: i**2, range(items)) == [i**2 for i in range(items)]


def test_run_uses_as_many_threads_as_are_set(count):
    meet = threading.Barrier(count, timeout=10)
    threads.run(lambda i: meet.wait(), range(count))


@pytest.mark.parametrize("bad", [0, 1, 99])
def test_run_raises_the_error_of_a_task(count, bad):
    def task(i):
        if i == bad:
            raise ValueError("bad")
        return i

    with pytest.raises(ValueError, match="bad"):
        threads.run(task, range(100))


def test_run_inside_a_task_does_not_wait_for_ever(count):
    def outer(i):
        return sum(threads.run(lambda j: i * j, range(10)))

    assert threads.run(outer, range(20)) == [45 * i for i in range(20)]
