"""Run tasks on all cores, with results that do not depend on their number."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import cache
from typing import TypeVar, cast

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


def one_blas_thread() -> AbstractContextManager[object]:
    """Limit BLAS to one thread.

    BLAS threads wait for work by spinning on cores that other tasks need, which makes a
    product of small matrices a hundred times slower. How BLAS splits a sum among its
    threads would also change the last bits.
    """
    held: AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return held


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


# A forked child inherits the pool's state but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
