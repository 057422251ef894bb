"""Estimate the time of planned runs, measured in a process like those that run them."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr_ctma.experiments.app import App, num_nodes_for
from flwr_ctma.experiments.estimate import Cost, measure_cost
from flwr_ctma.experiments.sweep_results import PlannedRun
from flwr_ctma.experiments.workers import single_core_pool
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = ["estimate_seconds", "measured_cost"]


def estimate_seconds(
    app: App,
    runs: Sequence[PlannedRun],
    workers: int,
    kind: type[InProcessGrid] = InProcessGrid,
) -> float | None:
    """Return the seconds that planned runs will take; None without an estimate.

    The first run is measured over a few rounds.
    """
    if not runs:
        return None
    config = runs[0].config
    cost = measured_cost(app, config, num_nodes_for(config), kind)
    return cost.seconds((run.config for run in runs), workers) if cost else None


def measured_cost(
    app: App,
    run_config: Mapping[str, Any],
    num_nodes: int,
    kind: type[InProcessGrid] = InProcessGrid,
) -> Cost | None:
    """Return the cost of an app, measured on one core in another process.

    None if the app has no key `num-server-rounds` or does not run: then its runs say
    why.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        single_core_pool(1, Path(folder) / "log.txt") as pool,
    ):
        future = pool.submit(measure_cost, app, run_config, num_nodes, kind)
        return None if future.exception() else future.result()
