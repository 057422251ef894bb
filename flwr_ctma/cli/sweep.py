"""`flwr-ctma sweep`: a grid of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.cli import options
from flwr_ctma.cli.runs import collect_runs, finish, show_plan
from flwr_ctma.cli.screen import Screen, errors_as_sentences
from flwr_ctma.cli.tables import score_table
from flwr_ctma.experiments.app import num_nodes_for, parse_app
from flwr_ctma.experiments.sweep import Sweep
from flwr_ctma.experiments.sweep_results import (
    FinishedRun,
    final_scores,
    match_results,
    write_rounds,
)
from flwr_ctma.report.charts import score_chart

__all__ = ["sweep"]


def sweep(
    file: Annotated[Path, typer.Argument(help="TOML file of keys and their values.")],
    app: options.AppArgument = ".",
    run_config: options.RunConfig = [],  # noqa: B006, typer copies it
    metric: options.Metric = "accuracy",
    last: options.Last = 1,
    workers: options.Workers = options.NUM_CORES,
    batched: options.Batched = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. An existing folder is resumed.",
            show_default="runs/<name of the file>",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Run an app with all combinations of some values of its run-config.

    Each run is one process on one core. The folder gets a table with a row for each
    evaluated round of each run, a heat map, and a folder for each run. The exit code is
    1 if a run failed.
    """
    screen = Screen(quiet, json)
    root = output or Path("runs") / file.stem
    with errors_as_sentences():
        plan = Sweep.read(file, parse_app(app), *run_config)
        kind = options.grid_type(batched)
        show_plan(plan, root, screen, workers, kind, dry_run)
        states = plan.run(root, workers, kind)
        finished = list(collect_runs(plan, states, screen, metric))
        write_rounds(root / "rounds.csv", finished, metric)
    _show(finished, root, screen, metric, last)
    finish(finished, root, screen, metric, last)


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
