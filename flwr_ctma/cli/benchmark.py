"""`flwr-ctma benchmark`: rules in many regimes, and the evidence for advice."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flwr_ctma.cli import options
from flwr_ctma.cli.runs import collect_runs, print_failures
from flwr_ctma.cli.screen import Screen, errors_as_sentences
from flwr_ctma.experiments.app import parse_app
from flwr_ctma.experiments.benchmark import Suite, chosen_rates, summarize
from flwr_ctma.experiments.estimate import estimate_seconds
from flwr_ctma.experiments.sweep_results import FinishedRun, PlannedRun
from flwr_ctma.report.benchmark import (
    benchmark_table,
    loss_chart,
    rate_cell,
    share_chart,
)
from flwr_ctma.tracking.json_lines import write_json

__all__ = ["benchmark"]


def benchmark(
    suite: Annotated[
        str,
        typer.Argument(
            help="TOML file with regimes, rules, attacks and seeds, "
            "or a suite of the package: `quick` (minutes), `digits`, `data`, "
            "`local-steps`, `server-steps`, `tabular`, `transformer`, `sampled`, "
            "`memory`, `memory-mnist` or `full` (days)."
        ),
    ] = "quick",
    app: options.AppArgument = ".",
    run_config: options.RunConfig = [],  # noqa: B006, typer copies it
    workers: options.Workers = options.NUM_CORES,
    batched: options.Batched = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Finished runs are skipped.",
            show_default="runs/benchmark-<name of the suite>",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Measure rules against attacks in many regimes.

    First, the learning rates of the suite are tried on validation data, equally often
    for each rule. Then each rule runs with its best rate under every attack. The folder
    gets `results.json`, a table in Markdown, and figures. They have, for each rule in
    each regime, the accuracy without an attack, under each attack and under the worst
    one, with 95 % intervals over the seeds, the CPU time of the aggregation of a
    round, and the bytes that a client sends. The exit code is 1 if a run failed.
    """
    screen = Screen(quiet, json)
    with errors_as_sentences():
        plan = Suite.read(suite, parse_app(app), *run_config)
        root = output or Path("runs") / f"benchmark-{plan.name}"
        kind = options.grid_type(batched)
        tuning = plan.sweep(plan.tuning_runs())
        if dry_run:
            rates = chosen_rates(plan, tuning.saved(root))
            left = tuning.unfinished(root)
            left += plan.sweep(plan.runs(rates)).unfinished(root)
            seconds = estimate_seconds(tuning.trials(left, kind), workers)
            screen.estimate(len(left), "runs", seconds, workers)
            screen.json({"runs": len(left), "seconds": seconds, "output": str(root)})
            return

        def run(runs: Sequence[PlannedRun]) -> list[FinishedRun]:
            sweep = plan.sweep(runs)
            states = sweep.run(root, workers, kind)
            return list(collect_runs(sweep, states, screen, plan.metric))

        tried = run(tuning.runs)
        rates = chosen_rates(plan, tried)
        finished = run(plan.runs(rates))
        results = summarize(plan, rates, finished)
        content = {
            "suite": plan.name,
            "command": f"flwr-ctma benchmark {shlex.quote(suite)}"
            + " --batched" * batched,
            "metric": plan.metric,
            "seeds": list(plan.seeds),
            "core-seconds": round(sum(one.seconds for one in [*tried, *finished])),
            "results": results,
        }
        write_json(root / "results.json", content)
        _write_page(results, root, screen)
    screen.print(_table(results))
    failed = print_failures([*tried, *finished], screen)
    screen.print(f"Results: {root / 'results.json'}")
    screen.json(content)
    raise typer.Exit(1 if failed else 0)


def _write_page(results: Sequence[dict[str, Any]], root: Path, screen: Screen) -> None:
    """Write the table of the results, and a figure for each question."""
    (root / "results.md").write_text(benchmark_table(results), encoding="utf-8")
    figures = {
        "cost": loss_chart(results, "cost", "What does a rule cost without an attack?"),
        "worst": loss_chart(results, "loss", "What does the worst attack take?"),
        "share": share_chart(results, "How does the worst case fall with f?"),
    }
    for name, chart in figures.items():
        if chart["concat"]:
            screen.figure(chart, root / f"benchmark-{name}.png")


def _table(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in ("steps", "data", "malicious", "rule", "rate", "no attack"):
        table.add_column(name)
    for name in ("worst", "interval", "attack", "seconds", "bytes"):
        table.add_column(name)
    for one in results:
        interval = one["worst"]["interval"]
        ends = "–".join(f"{100 * end:.1f}" for end in interval) if interval else ""
        memory = f", memory {one['memory']}" if one["memory"] else ""
        table.add_row(
            *(one["steps"], one["data"]),
            f"{one['malicious']} of {one['num-nodes']}",
            Text(one["rule"] + memory),
            rate_cell(one),
            f"{100 * one['unattacked']['mean']:.1f}",
            *(f"{100 * one['worst']['mean']:.1f}", ends),
            Text(one["worst"]["attack"]),
            f"{one['aggregation-seconds']:.2g}",
            f"{one['upload-bytes']:.2g}",
        )
    return table
