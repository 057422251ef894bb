"""Work on blocks of columns: all cores, and the same bits whatever their number."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from itertools import chain
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from flwr_ctma.errors import parameter_error

__all__ = ["one_blas_thread", "run"]

# To hand a thread a task costs as much as to inspect a small reply.
_MOST_TASKS = 32

T = TypeVar("T")
R = TypeVar("R")


def run(task: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a task to every item on all cores; results in the order of the items.

    The number of threads is the number of usable cores, or `FLWR_CTMA_NUM_THREADS`.
    Overflow is no warning: whoever called looks at the result.
    """

    def quiet(some: list[T]) -> list[R]:
        with np.errstate(over="ignore", invalid="ignore"):
            return [task(item) for item in some]

    work = list(items)
    with one_blas_thread():
        if len(work) <= 1 or _threads() == 1:
            return quiet(work)
        size = -(-len(work) // _MOST_TASKS)
        batches = [work[i : i + size] for i in range(0, len(work), size)]
        return list(chain.from_iterable(_pool().map(quiet, batches)))


def one_blas_thread() -> AbstractContextManager[object]:
    """Hold BLAS to one thread.

    Its threads wait for work by spinning, on cores that whole tasks are to have, which
    makes a product of small matrices a hundred times as slow; and how it splits a sum
    among them would show in the last bits.
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


# A forked child inherits the pool's book-keeping but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
