"""Runs of many points: their plan, progress, failures and results."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from flwr_ctma.cli.progress import RunProgress
from flwr_ctma.cli.screen import Screen
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.app import merge_overrides
from flwr_ctma.experiments.estimate import num_rounds_of
from flwr_ctma.experiments.sweep import Sweep, SweepProgress
from flwr_ctma.experiments.sweep_results import FinishedRun
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = [
    "MANY_RUNS",
    "collect_runs",
    "finish",
    "print_failures",
    "refuse_unused",
    "show_plan",
]

MANY_RUNS = 12
"""From this number on, an estimate of the time is worth the seconds that it takes."""


def refuse_unused(
    overrides: Sequence[str], configs: Sequence[Mapping[str, Any]], remedy: str
) -> None:
    """Refuse a value of `--run-config` that no run has, as the command sets the key.

    Parameters
    ----------
    overrides : sequence of str
        The values of `--run-config`.
    configs : sequence of Mapping[str, Any]
        Run-config of each run.
    remedy : str
        One sentence, with `{key}` in place of the key.

    Examples
    --------
    >>> refuse_unused(["seed=3"], [{"seed": 1}], "Write `--{key}` in place of `-c`.")
    Traceback (most recent call last):
    ValueError: Parameter `run-config` should be without `seed`, which the runs set. \
Found `run-config = 'seed=3'`. Write `--seed` in place of `-c`.
    """
    for key, value in merge_overrides(*overrides).items():
        if all(config.get(key) != value for config in configs):
            expected = f"without `{key}`, which the runs set"
            found = f"{key}={value}"
            raise parameter_error("run-config", expected, found, remedy.format(key=key))


def show_plan(
    plan: Sweep,
    root: Path,
    screen: Screen,
    workers: int,
    kind: type[InProcessGrid] | None,
    dry_run: bool,
) -> None:
    """Show how many runs are left, and for how long; a dry run ends the command.

    Runs in Flower's simulation have no kind of grid, and no estimate.
    """
    left = plan.unfinished(root)
    seconds = None
    if kind is None:
        screen.print(f"{len(left)} runs left. `--engine in-process` has an estimate.")
    elif dry_run or len(left) >= MANY_RUNS:
        seconds = plan.estimate(root, workers, kind)
        screen.estimate(len(left), "runs", seconds, workers)
    if dry_run:
        for run in left:
            screen.print(f"  {run.name}")
        names = [run.name for run in left]
        screen.json({"runs": names, "seconds": seconds, "output": str(root)})
        raise typer.Exit


def collect_runs(
    plan: Sweep, states: Iterator[SweepProgress], screen: Screen, metric: str
) -> Iterator[FinishedRun]:
    """Yield the runs as they finish, and show the progress of all."""
    first = next(states)
    yield from first.finished
    total = sum(run.num_rounds for run in plan.runs)
    saved = len(first.finished)
    with RunProgress(screen, len(plan.runs), total, saved, first.rounds) as progress:
        for state in states:
            progress.update(state.rounds)
            for one in state.finished:
                value = one.value(metric)
                shown = "no value" if value is None else f"{metric} {value:.4g}"
                result = "failed" if one.error else shown
                progress.finish_run(
                    f"{one.run.name}: {result} after {one.seconds:.0f} s"
                )
                yield one


def print_failures(finished: Sequence[FinishedRun], screen: Screen) -> bool:
    """Print each reason once, with its runs; return whether any run failed."""
    by_reason: dict[str, list[str]] = {}
    for one in finished:
        if one.error:
            by_reason.setdefault(one.error, []).append(one.run.name)
    for reason, names in by_reason.items():
        screen.error(f"Failed: {', '.join(names)}: {' '.join(reason.split())}")
    return bool(by_reason)


def _to_json(one: FinishedRun, metric: str, last: int) -> dict[str, object]:
    """Return a finished run as a JSON object."""
    return {
        "name": one.run.name,
        **one.run.point,
        metric: one.value(metric, last),
        "rounds": num_rounds_of(one.run.config),
        "seconds": one.seconds,
        "error": one.error,
    }


def finish(
    finished: Sequence[FinishedRun], root: Path, screen: Screen, metric: str, last: int
) -> None:
    """Show the failures and the folder, write the JSON, and end the command."""
    failed = print_failures(finished, screen)
    screen.print(f"Folder: {root}")
    runs = [_to_json(one, metric, last) for one in finished]
    screen.json({"output": str(root), "runs": runs})
    raise typer.Exit(1 if failed else 0)
