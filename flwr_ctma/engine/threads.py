"""Run tasks on all cores, with results that do not depend on their number."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ContextDecorator
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
from threadpoolctl import ThreadpoolController

from flwr_ctma.errors import parameter_error

__all__ = ["one_blas_thread", "run"]

T = TypeVar("T")
R = TypeVar("R")


def run(task: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a task to every item on all cores; return results in the items' order.

    The number of threads is the number of usable cores, or `FLWR_CTMA_NUM_THREADS`.
    The calling thread is one of them: to wake another takes longer than a short task.
    Overflow gives no warning: the caller checks the results.
    """
    work = list(items)
    results: list[R | None] = [None] * len(work)
    places = iter(range(len(work)))  # each thread takes the next item

    def take_items() -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for i in places:
                results[i] = task(work[i])

    with one_blas_thread():
        count = min(_threads(), len(work)) if len(work) > 1 else 1
        helpers = [_pool().submit(take_items) for _ in range(count - 1)]
        try:
            take_items()
        finally:
            started = [helper for helper in helpers if not helper.cancel()]
            wait(started)
        for helper in started:
            helper.result()
    return cast(list[R], results)


class _BlasLimit(ContextDecorator):
    """One thread of BLAS, for the whole process.

    The first to enter sets the limit and the last to leave takes it back: each for
    itself would take back that of another thread, and leave it for ever.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self.lock:
            if not self._inside:
                self._limit = _blas().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


def one_blas_thread() -> _BlasLimit:
    """Limit BLAS to one thread, in a `with` statement or as a decorator.

    BLAS threads wait for work by spinning on cores that other tasks need, which makes a
    product of small matrices a hundred times slower. How BLAS splits a sum among its
    threads would also change the last bits.
    """
    return _limit


_limit = _BlasLimit()


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="flwr-ctma")


def _threads() -> int:
    given = os.environ.get("FLWR_CTMA_NUM_THREADS")
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise parameter_error(
                "FLWR_CTMA_NUM_THREADS", "a whole number from 1", given
            )
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_child() -> None:
    """Replace what belongs to threads of the parent, which a child does not have."""
    _pool.cache_clear()
    _limit.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
