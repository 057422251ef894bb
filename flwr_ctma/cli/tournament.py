"""`flwr-ctma tournament`: rules against attacks in any app."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.cli import options
from flwr_ctma.cli.progress import RunProgress
from flwr_ctma.cli.runs import MANY_RUNS, refuse_unused
from flwr_ctma.cli.screen import Screen, errors_as_sentences
from flwr_ctma.cli.tables import ledger_table, score_table
from flwr_ctma.experiments.app import parse_app
from flwr_ctma.experiments.match import match_config
from flwr_ctma.experiments.scores import mean_scores, worst, worst_case_interval
from flwr_ctma.experiments.tournament import (
    DEFAULT_AGGREGATORS,
    DEFAULT_ATTACKS,
    Match,
    MatchResult,
    Tournament,
    write_matches,
)
from flwr_ctma.report.charts import score_chart

__all__ = ["tournament"]

_MALICIOUS = [3, 5, 8]
_SEEDS = [1, 2, 3]


def tournament(
    app: options.AppArgument = ".",
    aggregator: Annotated[
        list[str],
        typer.Option(help="Rule, or `fedavg` for the app's own. Repeatable."),
    ] = [*DEFAULT_AGGREGATORS],  # noqa: B006, typer copies it
    attack: options.Attacks = [*DEFAULT_ATTACKS],  # noqa: B006
    malicious: Annotated[
        list[int], typer.Option(help="Number of malicious clients. Repeatable.")
    ] = _MALICIOUS,
    seed: options.Seeds = _SEEDS,
    num_nodes: Annotated[int, typer.Option(help="Number of clients.", min=1)] = 17,
    metric: options.Metric = "accuracy",
    last: options.Last = 3,
    run_config: options.RunConfig = [],  # noqa: B006
    workers: options.Workers = options.NUM_CORES,
    batched: options.Batched = False,
    output: Annotated[
        Path,
        typer.Option(help="Folder for the results. Finished matches are skipped."),
    ] = Path("runs/tournament"),
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Run rules against attacks in any app, and find the rule with the best worst case.

    The app stays as it is: the tournament makes clients malicious, and wraps the
    strategy that the app starts in the rule. A match is one rule against one attack
    with one seed, in one process. The folder gets a table with a row for each match,
    and a heat map. The exit code is 1 if a match crashed.
    """
    screen = Screen(quiet, json)
    with errors_as_sentences():
        config = parse_app(app).run_config(*run_config)
        name = (
            app if ":" in app and not Path(app).is_dir() else str(Path(app).resolve())
        )
        planned = Tournament(name, config, num_nodes, metric, last)
        plan = planned.matches(aggregator, attack, malicious, seed)
        configs = [match_config(config, num_nodes, one) for one in seed]
        remedy = "The options `--num-nodes`, `--malicious`, `--attack` and `--seed` do."
        refuse_unused(run_config, configs, remedy)
        kind = options.grid_type(batched)
        saved = planned.saved(plan, output)
        left = planned.unfinished(plan, output)
        seconds = None
        if dry_run or len(left) >= MANY_RUNS:
            seconds = planned.estimate(plan, output, workers, kind)
            screen.estimate(len(left), "matches", seconds, workers)
        if dry_run:
            screen.print(
                f"Rules: {', '.join(aggregator)}",
                f"Attacks: {', '.join(attack)}",
                f"Malicious clients: {', '.join(map(str, malicious))} of {num_nodes}",
                f"Seeds: {', '.join(map(str, seed))}",
            )
            screen.json(
                {"matches": len(left), "seconds": seconds, "output": str(output)}
            )
            return
        results: dict[Match, MatchResult] = {}
        with RunProgress(screen, len(plan), len(plan), saved, saved) as progress:
            played = planned.run(plan, output, workers, kind)
            for match, result in played:
                results[match] = result
                if len(results) > saved:
                    progress.update(len(results))
                    progress.finish_run(_line(match, result))
        write_matches(output / "matches.csv", results)
        finished = any(one.value is not None for one in results.values())
        _show(results, planned, attack, output, screen if finished else None)
    crashed = _print_failures(results, screen)
    screen.print(f"Folder: {output}")
    screen.json(
        {
            "output": str(output),
            "best": _best(results) if finished else {},
            "matches": [asdict(m) | asdict(r) for m, r in results.items()],
        }
    )
    raise typer.Exit(0 if finished and not crashed else 1)


def _line(match: Match, result: MatchResult) -> str:
    score = result.status if result.value is None else f"{result.value:.4g}"
    return (
        f"{match.aggregator}, {match.attack}, {match.num_malicious} malicious, "
        f"seed {match.seed}: {score} after {result.seconds:.0f} s"
    )


def _show(
    results: Mapping[Match, MatchResult],
    planned: Tournament,
    attacks: list[str],
    output: Path,
    screen: Screen | None,
) -> None:
    if screen is None:
        return
    scores, n = mean_scores(results), planned.num_nodes
    for f, by_rule in scores.items():
        screen.print(score_table(f, n, by_rule, results))
        screen.print(f"Best worst case with {f} malicious: {next(iter(by_rule))}\n")
        if suspicion := ledger_table(f, n, results, attacks):
            screen.print(suspicion)
    paths = (output / f"tournament.{suffix}" for suffix in ("png", "svg"))
    screen.figure(score_chart(scores, n, planned.metric), *paths)


def _best(results: Mapping[Match, MatchResult]) -> dict[int, object]:
    best: dict[int, object] = {}
    for f, by_rule in mean_scores(results).items():
        rule = next(iter(by_rule))
        interval = worst_case_interval(results, rule, f)
        ends = [interval.low, interval.high] if interval else None
        best[f] = {"rule": rule, "worst": worst(by_rule[rule]), "interval": ends}
    return best


def _print_failures(results: Mapping[Match, MatchResult], screen: Screen) -> bool:
    """Print each reason once; return whether a match crashed."""
    by_reason: dict[tuple[str, str], list[Match]] = {}
    for match, result in results.items():
        if result.value is None:
            key = (result.status, " ".join(result.reason.split()))
            by_reason.setdefault(key, []).append(match)
    for (status, reason), matches in by_reason.items():
        rules = ", ".join(dict.fromkeys(match.aggregator for match in matches))
        text = f"{status.capitalize()}: {len(matches)} matches of {rules}: {reason}"
        if status == "crashed":
            screen.error(text)
        else:
            screen.print(text, style="dim")
    return any(status == "crashed" for status, _ in by_reason)
