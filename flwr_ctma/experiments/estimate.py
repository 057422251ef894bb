"""Estimates of the time that many runs take, from a few short trials of them."""

import heapq
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from flwr_ctma.experiments.processes import RunFailed, describe
from flwr_ctma.experiments.workers import single_core_pool

__all__ = [
    "ROUNDS_KEY",
    "Trial",
    "estimate_seconds",
    "format_seconds",
    "makespan",
    "num_rounds_of",
    "time_left",
]

ROUNDS_KEY = "num-server-rounds"
_TRIALS_PER_WORKER = 6


@dataclass(frozen=True)
class Trial:
    """A planned run that can be tried for a few rounds.

    Parameters
    ----------
    run : Callable[[int], object]
        Runs so many rounds, in another process.
    rounds : int
        Rounds of the planned run.
    num_nodes : int
        Clients in a round.
    """

    run: Callable[[int], object]
    rounds: int
    num_nodes: int


@dataclass(frozen=True)
class _Cost:
    """Seconds to start a run, of a client in a round, and of the trial after its start.

    The first start in a process takes longer: it also imports the app.
    """

    start: float
    client_round: float
    trial: float


def estimate_seconds(trials: Sequence[Trial], workers: int) -> float | None:
    """Return the seconds that planned runs take in so many processes.

    Runs from the whole plan are tried, as rules and attacks differ in cost, and as many
    at the same time as later, as processes slow each other down. None without trials.

    Raises
    ------
    RunFailed
        If every trial fails: the runs would fail as well.
    """
    if not trials:
        return None
    workers = min(workers, len(trials))
    count = min(_TRIALS_PER_WORKER * workers, len(trials))
    tried = [trials[i * (len(trials) - 1) // max(count - 1, 1)] for i in range(count)]
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        single_core_pool(workers, Path(folder) / "log.txt") as pool,
    ):
        futures = [pool.submit(_measure, trial) for trial in tried]
        costs = [one.result() for one in futures if not one.exception()]
    if not costs:
        raise RunFailed(describe(futures[0].exception()))
    start = statistics.median(cost.start for cost in costs)
    spent = makespan((start + cost.trial for cost in costs), workers)
    processes = max(time.monotonic() - began - spent, 0.0)
    client_round = statistics.fmean(cost.client_round for cost in costs)
    each = (start + client_round * one.num_nodes * one.rounds for one in trials)
    return processes + makespan(each, workers)


def _measure(trial: Trial) -> _Cost:
    """Time a run over one round, then over three."""
    seconds = []
    for rounds in (1, 1, 3):  # the first also deals out the data
        began = time.monotonic()
        trial.run(rounds)
        seconds.append(time.monotonic() - began)
    per_round = max((seconds[2] - seconds[1]) / 2, 1e-6)
    start = max(seconds[0] - per_round, 0.0)
    return _Cost(start, per_round / trial.num_nodes, sum(seconds) - start)


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return when the last task ends, if each free worker takes the next one.

    Examples
    --------
    >>> makespan([2.0, 2.0, 2.0], workers=2)
    4.0
    """
    busy_until = [0.0] * workers
    for one in seconds:
        heapq.heapreplace(busy_until, busy_until[0] + one)
    return max(busy_until)


def num_rounds_of(run_config: Mapping[str, Any]) -> int | None:
    """Return the number of rounds that a run-config asks for, if it says so."""
    rounds = run_config.get(ROUNDS_KEY)
    whole = isinstance(rounds, int) and not isinstance(rounds, bool) and rounds > 0
    return rounds if whole else None


def time_left(elapsed: float, done: float, total: float) -> float:
    """Return the seconds that remain if all work takes as long as the work so far.

    Examples
    --------
    >>> time_left(elapsed=30.0, done=3, total=9)
    60.0
    """
    return elapsed * (total - done) / done


def format_seconds(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    Examples
    --------
    >>> format_seconds(3725.4)
    '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))
