"""Runs that are killed at random moments, and started again until they end."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Result

from flwr_ctma.tracking.checkpoint import latest

Start = Callable[[Path | None], Result]


def bits(arrays: ArrayRecord) -> list[bytes]:
    return [array.data for array in arrays.values()]


def kill_again_and_again(start: Start, folder: Path, times: int) -> None:
    """Kill runs at random moments; no finished round is lost, the end is the same.

    `start` runs to the end, from what is in a folder, or without one.
    """
    expected = bits(start(None).arrays)
    rng = np.random.default_rng(0)
    began = time.monotonic()
    start(folder / "timing")
    whole = time.monotonic() - began
    kills = runs = 0
    while kills < times:
        run, seen = folder / f"run{runs}", -1
        while _killed_after(start, run, rng.uniform(0, whole)):
            kills += 1
            found = latest(run) if run.exists() else None
            number = found.number if found else -1
            assert number >= seen, "a finished round was lost"
            seen = number
        assert bits(start(run).arrays) == expected
        shutil.rmtree(run)
        runs += 1


def _killed_after(start: Start, folder: Path, seconds: float) -> bool:
    """Run in a child until it ends or is killed; tell whether it was killed."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        start(folder)
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
