"""`flwr-ctma sweep`: a grid of runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flwr_ctma.cli.common import Batched, RunConfig, in_a_sentence, kind_of_grid
from flwr_ctma.experiments.sweep import State, Sweep
from flwr_ctma.experiments.sweep_results import Ended, final_scores, write_rounds
from flwr_ctma.report.heatmap import draw_scores, score_table

__all__ = ["sweep"]


def sweep(
    file: Annotated[Path, typer.Argument(help="TOML file with the grid.")],
    app: Annotated[Path, typer.Option(help="Folder of the Flower app.")] = Path(),
    run_config: RunConfig = [],  # noqa: B006, typer copies it
    workers: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 2,
    batched: Batched = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder. One that is there is gone on with.",
            show_default="runs/<name of the file>",
        ),
    ] = None,
) -> None:
    """Run all combinations of some values of the app's run-config.

    Every run is made in one process, on one core. The folder gets a table with a row
    for each evaluated round of each run, a heat map, and the folder of every run; runs
    that are there already are not made again. The exit code is 1 if a run failed.
    """
    console = Console()
    root = output or Path("runs") / file.stem
    with in_a_sentence():
        planned = Sweep.read(file, app, *run_config)
        states = planned.run_match(root, workers, kind_of_grid(batched))
        ended = list(_watched(planned, states, console))
    write_rounds(root / "rounds.csv", ended)
    good = [one for one in ended if not one.why]
    for one in ended:
        if one.why:
            said = f"[bold red]failed[/] {one.run.name}: {escape(one.why)}"
            console.print(said, soft_wrap=True)
    if good:
        _show(good, root, console)
    console.print(f"Folder: {root}", soft_wrap=True)
    raise typer.Exit(0 if len(good) == len(planned.runs) else 1)


def _watched(
    planned: Sweep, states: Iterator[State], console: Console
) -> Iterator[Ended]:
    """Hand on the runs that end, and show how far the sweep is."""
    rounds = sum(run.num_rounds for run in planned.runs)
    bar = Progress(
        TextColumn("Rounds"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[runs]} runs"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    done, total = 0, len(planned.runs)
    with bar:
        first = next(states)
        task = bar.add_task(
            "", total=rounds, completed=first.rounds, runs=f"{len(first.ended)}/{total}"
        )
        done += len(first.ended)
        yield from first.ended
        for state in states:
            done += len(state.ended)
            bar.update(task, completed=state.rounds, runs=f"{done}/{total}")
            for one in state.ended:
                how = one.why or f"{one.accuracy:.1%} after {one.seconds:.0f} s"
                said = f"[{done}/{total}] {one.run.name}: {how}"
                console.print(said, markup=False, highlight=False, soft_wrap=True)
                yield one


def _show(ended: list[Ended], root: Path, console: Console) -> None:
    by_size: dict[int, list[Ended]] = {}
    for one in ended:
        by_size.setdefault(int(one.run.config["num-nodes"]), []).append(one)
    for num_nodes, some in by_size.items():
        found = final_scores(some)
        for f, by_rule in found.items():
            console.print(score_table(f, num_nodes, by_rule))
        name = "scores.png" if len(by_size) == 1 else f"scores-{num_nodes}.png"
        draw_scores(found, num_nodes, "accuracy", root / name)
    steps = sum(one.run.num_rounds * one.run.config["num-nodes"] for one in ended)
    seconds = sum(one.seconds for one in ended)
    console.print(
        f"{len(ended)} runs took {seconds:.0f} s of their cores: "
        f"{steps / seconds:.0f} client-rounds a second on each"
    )
