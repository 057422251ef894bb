"""`flwr-ctma compare`: the app under several rules, side by side."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flwr_ctma.cli import options
from flwr_ctma.cli.runs import collect_runs, finish, refuse_unused, show_plan
from flwr_ctma.cli.screen import Screen, errors_as_sentences
from flwr_ctma.cli.tables import comparison_table
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.app import (
    App,
    FlowerApp,
    num_nodes_for,
    parse_app,
)
from flwr_ctma.experiments.comparison import (
    comparison_runs,
    run_one_by_one,
    summarize_rules,
)
from flwr_ctma.experiments.runtimes import Ray
from flwr_ctma.experiments.sweep import Sweep, SweepProgress, check_values
from flwr_ctma.experiments.sweep_results import FinishedRun, PlannedRun, write_rounds
from flwr_ctma.experiments.tournament import undefined_reason
from flwr_ctma.experiments.workers import make_folder
from flwr_ctma.report.charts import line_chart
from flwr_ctma.tracking.json_lines import write_json

__all__ = ["compare"]


class EngineName(StrEnum):
    """Where the clients run."""

    RAY = "ray"
    IN_PROCESS = "in-process"


_KEYS = {
    *("aggregator", "attack", "partitioner", "seed", "output", "dataset"),
    *("num-nodes", "num-malicious-nodes", "num-server-rounds"),
}


def compare(
    app: options.AppArgument = ".",
    aggregator: Annotated[
        list[str], typer.Option(help="Rule, or `fedavg` for none. Repeatable.")
    ] = ["fedavg", "ctma(gm)", "caf"],  # noqa: B006, typer copies it
    attack: Annotated[
        list[str],
        typer.Option(
            help="Attack of the malicious clients. Repeatable.",
            show_default="the app's",
        ),
    ] = [],  # noqa: B006
    partitioner: Annotated[
        list[str], typer.Option(help="How the data are partitioned. Repeatable.")
    ] = ["iid", "dirichlet"],  # noqa: B006
    seed: Annotated[
        list[int],
        typer.Option(help="Seed of a run. Repeatable.", show_default="the app's"),
    ] = [],  # noqa: B006
    run_config: options.RunConfig = [],  # noqa: B006
    engine: Annotated[
        EngineName,
        typer.Option(
            help="`ray`: Flower's simulation, one run at a time on all cores; "
            "`in-process`: each run in one process, which is faster."
        ),
    ] = EngineName.RAY,
    workers: options.Workers = options.NUM_CORES,
    batched: options.Batched = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. An existing folder is resumed.",
            show_default="runs/<date and time>",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Run the app under several rules, and show them side by side.

    Every combination of rule, attack, partitioner and seed is one run. The folder gets
    the configuration, a figure, and for each run the metrics by round with the clients
    that were rejected or trimmed. The exit code is 1 if a run failed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    screen = Screen(quiet, json)
    with errors_as_sentences():
        flower_app = parse_app(app)
        settings = flower_app.run_config(*run_config)
        if missing := sorted(_KEYS - set(settings)):
            expected = f"an app whose run-config has the keys {', '.join(missing)}"
            raise parameter_error(
                "app", expected, app, "`flwr-ctma tournament` takes any app."
            )
        if batched and engine is EngineName.RAY:
            expected = "`in-process` with `--batched`"
            raise parameter_error("engine", expected, str(engine))
        attacks = attack or [settings["attack"]]
        runs = comparison_runs(
            *(flower_app, settings, attacks, partitioner, aggregator),
            seed or [settings["seed"]],
        )
        for run in runs:
            check_values(flower_app, run.config)
        remedy = "Write `--{key}` in place of `-c`."
        refuse_unused(run_config, [run.config for run in runs], remedy)
        _check(settings, aggregator)
        plan = Sweep(flower_app, runs)
        root = output or Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        kind = options.grid_type(batched)
        in_process = engine is EngineName.IN_PROCESS
        if dry_run or in_process:
            show_plan(
                plan, root, screen, workers, kind if in_process else None, dry_run
            )
        _write_config(root, settings, runs, engine)
        states = (
            plan.run(root, workers, kind)
            if in_process
            else _run_in_ray(flower_app, plan, root)
        )
        finished = list(collect_runs(plan, states, screen, "accuracy"))
        write_rounds(root / "rounds.csv", finished)
    good = [one for one in finished if not one.error]
    if good:
        _show(good, settings, root, screen)
    finish(finished, root, screen, "accuracy", 1)


def _check(settings: Mapping[str, Any], aggregators: Sequence[str]) -> None:
    n, f = num_nodes_for(settings), settings["num-malicious-nodes"]
    if type(f) is not int or not 0 <= f < n / 2:
        expected = f"at least 0 and less than half of num-nodes = {n}"
        remedy = "No rule withstands a malicious half."
        raise parameter_error("num-malicious-nodes", expected, f, remedy)
    for rule in aggregators:
        if reason := undefined_reason(rule, n, f):
            raise ValueError(reason)


def _run_in_ray(app: App, plan: Sweep, root: Path) -> Iterator[SweepProgress]:
    if not isinstance(app, FlowerApp):
        raise parameter_error(
            "app", "a folder, as `flwr run` runs folders only", str(app)
        )
    with Ray(app.path) as engine:
        yield from run_one_by_one(plan, engine, root)


def _write_config(
    root: Path, settings: Mapping[str, Any], runs: Sequence[PlannedRun], engine: str
) -> None:
    make_folder(root)
    config = {
        "run-config": dict(settings),
        "runs": {run.name: dict(run.point) for run in runs},
        "engine": str(engine),
    }
    write_json(root / "config.json", config)


def _show(
    finished: Sequence[FinishedRun],
    settings: Mapping[str, Any],
    root: Path,
    screen: Screen,
) -> None:
    scenarios = summarize_rules(finished)
    for title, summaries in scenarios.items():
        screen.print("")
        screen.print(f"Test accuracy (%), {title}", style="bold")
        screen.print(comparison_table(summaries))
    everyone = [one for some in scenarios.values() for one in some]
    if any(one.malicious_kept is not None for one in everyone):
        screen.print("kept: malicious clients that counted in a round, on average")
    if any(one.backdoor is not None for one in everyone):
        screen.print("backdoor: success rate after the last round (%)")
    panels = {
        title: {one.aggregator: one.curve for one in summaries if one.curve.rounds}
        for title, summaries in scenarios.items()
    }
    title = f"{settings['dataset']}, {settings['num-nodes']} clients"
    chart = line_chart(panels, "Test accuracy (%)", share=True, title=title)
    screen.figure(chart, root / "accuracy.png")
