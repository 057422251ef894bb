"""Estimates of the time that many runs will take."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flwr_ctma.experiments.app import App, num_nodes_for
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = ["Cost", "format_seconds", "measure_cost", "num_rounds_of", "time_left"]

_ROUNDS_KEY = "num-server-rounds"


@dataclass(frozen=True)
class Cost:
    """Seconds that an app takes on one core: to start, and for one client's round."""

    start: float
    client_round: float

    def seconds(self, runs: Iterable[Mapping[str, Any]], workers: int) -> float:
        """Estimate the seconds that runs take, side by side on so many cores.

        Parameters
        ----------
        runs : iterable of Mapping[str, Any]
            The run-config of each.
        workers : int

        Examples
        --------
        >>> config = {"num-nodes": 10, "num-server-rounds": 30}
        >>> Cost(start=2.0, client_round=0.01).seconds([config] * 4, workers=2)
        10.0
        """
        total = sum(
            self.start
            + self.client_round * num_nodes_for(config) * (num_rounds_of(config) or 1)
            for config in runs
        )
        return total / workers


def measure_cost(
    app: App,
    run_config: Mapping[str, Any],
    num_nodes: int,
    kind: type[InProcessGrid] = InProcessGrid,
) -> Cost | None:
    """Time an app over one round, then over three.

    Returns
    -------
    Cost or None
        None if the app has no run-config key `num-server-rounds`.
    """
    if num_rounds_of(run_config) is None:
        return None
    quiet = {"output": ""} if "output" in run_config else {}
    seconds = []
    for rounds in (1, 1, 3):  # the first also imports the app and loads its data
        config = {**run_config, **quiet, _ROUNDS_KEY: rounds}
        began = time.monotonic()
        app.simulate(num_nodes, config, kind)
        seconds.append(time.monotonic() - began)
    per_round = max((seconds[2] - seconds[1]) / 2, 1e-6)
    return Cost(max(seconds[1] - per_round, 0.0), per_round / num_nodes)


def num_rounds_of(run_config: Mapping[str, Any]) -> int | None:
    """Return the number of rounds that a run-config asks for, if it says so."""
    rounds = run_config.get(_ROUNDS_KEY)
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
