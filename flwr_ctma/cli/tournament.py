"""`flwr-ctma tournament`: rules against attacks, in any app."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress

from flwr_ctma.cli.common import (
    Batched,
    Folder,
    RunConfig,
    in_a_sentence,
    kind_of_grid,
)
from flwr_ctma.compat import parse_config_args
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.tournament import Tournament, scores, write_matches
from flwr_ctma.report.heatmap import draw_scores, ledger_table, score_table

__all__ = ["tournament"]

_RULES = ["fedavg", "cwmed", "gm", "ctma(cwmed)", "ctma(gm)", "nnm(cwmed)", "nnm(gm)"]
_ATTACKS = ["none", "signflip", "labelflip", "ipm(epsilon=0.5)", "alie", "minmax"]


def tournament(
    folder: Folder = Path(),
    apps: Annotated[
        str,
        typer.Option(
            "--app", help="`module:server_app,module:client_app`, in place of a folder."
        ),
    ] = "",
    aggregator: Annotated[
        list[str], typer.Option(help="Rule, or `fedavg`. Repeatable.")
    ] = _RULES,
    attack: Annotated[
        list[str], typer.Option(help="What malicious clients do. Repeatable.")
    ] = _ATTACKS,
    malicious: Annotated[
        list[int], typer.Option(help="How many clients are malicious. Repeatable.")
    ] = [3, 5, 8],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seed of a run. Repeatable.")] = [1],  # noqa: B006
    num_nodes: Annotated[int, typer.Option(help="Number of clients.", min=1)] = 17,
    metric: Annotated[
        str, typer.Option(help="What is compared, as the app names it; large is good.")
    ] = "accuracy",
    run_config: RunConfig = [],  # noqa: B006
    workers: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 2,
    batched: Batched = False,
    output: Annotated[
        Path, typer.Option(help="Folder. What it holds of it is not played again.")
    ] = Path("runs/tournament"),
) -> None:
    """Play rules against attacks in any app, and name the best worst case.

    The app needs no change: its clients are made malicious, and whatever strategy it
    starts is wrapped in the rule. Every match is a run in one process. The folder gets
    a table with a row for each match, and a heat map.
    """
    console = Console()
    with in_a_sentence():
        if apps:
            config = parse_config_args(run_config)
        else:
            config = FlowerApp(folder).run_config(*run_config)
        cup = Tournament(apps or str(folder.resolve()), config, num_nodes, metric)
        plan = cup.matches(aggregator, attack, malicious, seed)
        played = {}
        bar = Progress(
            *Progress.get_default_columns(), MofNCompleteColumn(), console=console
        )
        with bar:
            matches = cup.play_all(plan, output, workers, kind_of_grid(batched))
            for match, outcome in bar.track(matches, len(plan), description="Matches"):
                played[match] = outcome
    write_matches(output / "matches.csv", played)
    for match, outcome in played.items():
        if outcome.value is None:
            console.print(f"not played: {match}: {escape(outcome.why)}", style="dim")
    if all(outcome.value is None for outcome in played.values()):
        raise typer.Exit(1)
    found = scores(played)
    for f, by_rule in found.items():
        console.print(score_table(f, num_nodes, by_rule))
        best = next(iter(by_rule))
        console.print(f"Best worst case with {f} malicious: [bold]{best}[/]\n")
        if told := ledger_table(f, num_nodes, played, attack):
            console.print(told)
    draw_scores(found, num_nodes, metric, output / "tournament.png")
    console.print(f"Folder: {output}", soft_wrap=True)
