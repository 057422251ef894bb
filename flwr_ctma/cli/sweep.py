"""`flwr-ctma sweep`: a grid of runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.cli.common import (
    MANY_RUNS,
    NUM_CORES,
    AppArgument,
    Batched,
    DryRun,
    Json,
    Quiet,
    RunConfig,
    Screen,
    Workers,
    errors_as_sentences,
    grid_type,
)
from flwr_ctma.cli.progress import RunProgress
from flwr_ctma.cli.tables import score_table
from flwr_ctma.experiments.app import num_nodes_for, parse_app
from flwr_ctma.experiments.estimate import num_rounds_of
from flwr_ctma.experiments.plan_cost import estimate_seconds
from flwr_ctma.experiments.sweep import Sweep, SweepProgress
from flwr_ctma.experiments.sweep_results import (
    FinishedRun,
    final_scores,
    match_results,
    write_rounds,
)
from flwr_ctma.report.charts import score_chart

__all__ = ["collect_runs", "print_failures", "run_to_json", "sweep"]


def sweep(
    file: Annotated[Path, typer.Argument(help="TOML file that describes the runs.")],
    app: AppArgument = ".",
    run_config: RunConfig = [],  # noqa: B006, typer copies it
    metric: Annotated[
        str, typer.Option(help="Metric to compare, as the app reports it.")
    ] = "accuracy",
    last: Annotated[
        int, typer.Option(help="Average the metric over the last evaluations.", min=1)
    ] = 1,
    workers: Workers = NUM_CORES,
    batched: Batched = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. An existing folder is resumed.",
            show_default="runs/<name of the file>",
        ),
    ] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run all combinations of values of an app's run-config.

    Each run is one process on one core. The folder gets a table with a row for each
    evaluated round of each run, a heat map, and a folder for each run. Finished runs
    are skipped. The exit code is 1 if a run failed.
    """
    screen = Screen(quiet, json)
    root = output or Path("runs") / file.stem
    with errors_as_sentences():
        plan = Sweep.read(file, parse_app(app), *run_config)
        kind = grid_type(batched)
        left = plan.unfinished(root)
        if dry_run or len(left) >= MANY_RUNS:
            seconds = estimate_seconds(plan.app, left, workers, kind)
            screen.estimate(len(left), "runs", seconds, workers)
        if dry_run:
            for run in left:
                screen.print(f"  {run.name}")
            screen.json({"runs": [run.name for run in left], "output": str(root)})
            return
        states = plan.run(root, workers, kind)
        finished = list(collect_runs(plan, states, screen, metric))
        write_rounds(root / "rounds.csv", finished, metric)
    _show(finished, root, screen, metric, last)
    failed = print_failures(finished, screen)
    screen.print(f"Folder: {root}")
    screen.json(
        {
            "output": str(root),
            "runs": [run_to_json(one, metric, last) for one in finished],
        }
    )
    raise typer.Exit(1 if failed else 0)


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


def run_to_json(one: FinishedRun, metric: str, last: int) -> dict[str, object]:
    """Return a finished run as a JSON object."""
    return {
        "name": one.run.name,
        **one.run.point,
        metric: one.value(metric, last),
        "rounds": num_rounds_of(one.run.config),
        "seconds": one.seconds,
        "error": one.error,
    }


def _show(
    finished: Sequence[FinishedRun], root: Path, screen: Screen, metric: str, last: int
) -> None:
    by_size: dict[int, list[FinishedRun]] = {}
    for one in finished:
        by_size.setdefault(num_nodes_for(one.run.config), []).append(one)
    for num_nodes, some in by_size.items():
        if all(one.error for one in some):
            continue
        results = match_results(some, metric, last)
        scores = final_scores(some, metric, last)
        for f, by_rule in scores.items():
            screen.print(score_table(f, num_nodes, by_rule, results))
        name = "scores.png" if len(by_size) == 1 else f"scores-{num_nodes}.png"
        screen.figure(score_chart(scores, num_nodes, metric), root / name)
