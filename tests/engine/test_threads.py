"""Tasks on all cores."""

import threading
from contextlib import ExitStack

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

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


def blas_threads():
    """The numbers of threads of all BLAS libraries."""
    return {
        library["num_threads"]
        for library in threadpool_info()
        if library["user_api"] == "blas"
    }


def test_blas_keeps_to_one_thread_until_the_last_user_is_done():
    first, second = threads.one_blas_thread(), threads.one_blas_thread()
    with threadpool_limits(2, "blas"), ExitStack() as stack:
        with first:
            stack.enter_context(second)
        assert blas_threads() == {1}
        stack.pop_all().close()
        assert blas_threads() == {2}
