"""Processes that each run whole federations on one core, and the folder they fill."""

import contextlib
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from filelock import FileLock, Timeout

from flwr_ctma.errors import parameter_error

__all__ = ["alone_in", "one_core_each"]


@contextlib.contextmanager
def one_core_each(workers: int, log: Path) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes that use one core each and print into a file.

    When the block ends, what has not begun does not begin. If this process is killed,
    they end with it, so that none of them writes where the next attempt does.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (log,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, as two would write one line.

    Raises
    ------
    ValueError
        If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise parameter_error(
            "output",
            "a folder in which nothing else is at work",
            str(folder),
            "Wait until that has ended, or name another folder.",
        ) from error


def _begin(log: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["FLWR_CTMA_NUM_THREADS"] = "1"
    stream = log.open("a", encoding="utf-8", buffering=1)
    sys.stdout = sys.stderr = stream
    for handler in logging.getLogger("flwr").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
