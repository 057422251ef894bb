"""Processes that each run whole federations on one core, and the folder they fill."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from filelock import FileLock, Timeout

from flwr_ctma.errors import parameter_error

__all__ = ["exclusive_folder", "make_folder", "single_core_pool"]


@contextlib.contextmanager
def single_core_pool(workers: int, log: Path) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes that use one core each and print into a file.

    If the block raises, Ctrl-C included, the processes are killed and pending calls are
    cancelled. They also end if this process is killed, so that none of them writes
    where the next attempt does.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, _set_up_worker, (log,))
    try:
        with _inherited_deafness():
            pool.submit(int)
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        raise


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Create a folder if needed, and lock it against other processes.

    Raises
    ------
    ValueError
        If another process holds the lock, and if nothing can be written there.
    """
    make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise parameter_error(
            "output",
            "a folder that no other process is using",
            str(folder),
            "Wait until that process has ended, or name another folder.",
        ) from error


def make_folder(folder: Path) -> None:
    """Create a folder for results if needed.

    Raises
    ------
    ValueError
        If there can be no folder, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise parameter_error(
            "output",
            f"a folder that can be written ({error.strerror})",
            str(folder),
            "Name another folder with `--output`.",
        ) from error


@contextlib.contextmanager
def _inherited_deafness() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: this process decides when they end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _set_up_worker(log: Path) -> None:
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
