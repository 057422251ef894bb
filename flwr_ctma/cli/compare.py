"""`flwr-ctma compare`: the app under several rules, side by side."""

import json
import signal
import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flwr_ctma.attacks import parse_attack
from flwr_ctma.cli.common import Folder, RunConfig, in_a_sentence
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.comparison import Job, Rounds, curves, jobs, table, write_csv
from flwr_ctma.experiments.processes import RunFailed
from flwr_ctma.experiments.progress import Watcher
from flwr_ctma.experiments.runtimes import Batched, Engine, InProcess, Ray
from flwr_ctma.experiments.tournament import undefined
from flwr_ctma.report.accuracy_figure import draw_accuracy

__all__ = ["compare"]


class EngineName(StrEnum):
    """What runs the clients."""

    RAY = "ray"
    IN_PROCESS = "in-process"
    BATCHED = "batched"


_ENGINES: dict[EngineName, type[Engine]] = {
    EngineName.RAY: Ray,
    EngineName.IN_PROCESS: InProcess,
    EngineName.BATCHED: Batched,
}
_KEYS = {
    *("aggregator", "attack", "partitioner", "seed", "output", "dataset"),
    *("num-nodes", "num-malicious-nodes", "num-server-rounds"),
}


def compare(
    folder: Folder = Path(),
    aggregator: Annotated[
        list[str], typer.Option(help="Rule, or `fedavg`. Repeatable.")
    ] = ["fedavg", "ctma(gm)"],  # noqa: B006, typer copies it
    attack: Annotated[
        list[str],
        typer.Option(help="What malicious clients do. Repeatable. Default: the app's."),
    ] = [],  # noqa: B006
    partitioner: Annotated[
        list[str], typer.Option(help="How the data is partitioned. Repeatable.")
    ] = ["iid", "dirichlet"],  # noqa: B006
    seed: Annotated[
        list[int], typer.Option(help="Repeatable. Default: the app's.")
    ] = [],  # noqa: B006
    run_config: RunConfig = [],  # noqa: B006
    engine: Annotated[
        EngineName,
        typer.Option(
            help="Flower's Ray-backed simulation; one process: quicker; or there, the "
            "clients of a round computed together: quicker still."
        ),
    ] = EngineName.RAY,
    output: Annotated[
        Path | None,
        typer.Option(help="Run folder.", show_default="runs/<date and time>"),
    ] = None,
) -> None:
    """Run the app under several rules, and show them side by side.

    Every combination of rule, attack, partitioner and seed is one run. The run folder
    gets the configuration, a figure, and of every run the metrics by round with who was
    rejected or trimmed. The exit code is 1 if a run failed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    with in_a_sentence():
        flower_app = FlowerApp(folder)
        settings = flower_app.run_config(*run_config)
        if missing := sorted(_KEYS - set(settings)):
            expected = f"an app whose run-config has {', '.join(missing)}"
            raise parameter_error("app", expected, str(folder))
        attacks = attack or [settings["attack"]]
        n, f = settings["num-nodes"], settings["num-malicious-nodes"]
        if not isinstance(n, int) or n < 1:
            raise parameter_error("num-nodes", "at least 1", n)
        for rule in aggregator:
            if why := undefined(rule, n, f):
                raise ValueError(why)
        for each in attacks:
            parse_attack(each)
        plan = jobs(attacks, partitioner, aggregator, seed or [settings["seed"]])
        root = output or Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        _write_config(root, settings, plan, engine)
        results, failed = _run_all(
            plan, _ENGINES[engine](folder), settings, root, console
        )
    write_csv(root / "rounds.csv", results)
    if results:
        _show(results, settings, root, console)
    for job, reason in failed.items():
        console.print(f"[bold red]failed[/] {job}: {escape(reason)}", soft_wrap=True)
    console.print(f"Run folder: {root}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


def _run_all(
    plan: list[Job],
    engine: Engine,
    settings: dict[str, Any],
    root: Path,
    console: Console,
) -> tuple[dict[Job, Rounds], dict[Job, str]]:
    """Run one job after the other; only the first stops the others if it cannot begin.

    That is the user's to mend, and before anything else is run.
    """
    results: dict[Job, Rounds] = {}
    failed: dict[Job, str] = {}
    with engine, Watcher(console, plan, settings["num-server-rounds"]) as watcher:
        for job in plan:
            rounds: Rounds = []
            try:
                for rounds in job.run(engine, settings, root / str(job)):
                    watcher.see(job, rounds)
                results[job] = rounds
            except RunFailed as error:
                if not (rounds or results or failed):
                    raise
                failed[job] = str(error)
    return results, failed


def _write_config(
    root: Path, settings: dict[str, Any], plan: list[Job], engine: EngineName
) -> None:
    root.mkdir(parents=True, exist_ok=True)
    config = {
        "run-config": settings,
        "runs": {str(job): job.config for job in plan},
        "engine": engine,
    }
    (root / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _show(
    results: dict[Job, Rounds], settings: dict[str, Any], root: Path, console: Console
) -> None:
    by_scenario = curves(results)
    malicious = f"{settings['num-malicious-nodes']} of {settings['num-nodes']}"
    for scenario, by_rule in by_scenario.items():
        console.print()
        console.print(
            f"[bold]Test accuracy (%), {malicious} clients malicious: {scenario}",
            highlight=False,
        )
        console.print(table(by_rule))
    console.print("kept: malicious clients that counted in a round, on average")
    if any(c.backdoor is not None for by_rule in by_scenario.values() for c in by_rule):
        console.print("backdoor: how often it opens after the last round (%)")
    title = f"{settings['dataset']}: {malicious} clients malicious"
    draw_accuracy(by_scenario, title, root / "accuracy.png")
