"""`flwr-ctma report`: a page of runs."""

from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.cli.screen import errors_as_sentences
from flwr_ctma.report import write_report

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or folders that hold some.")
    ],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        list[str],
        typer.Option(
            help="Also write the figures as `pdf`, `svg` or `png`. Repeatable."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Write a page about runs: accuracy, attacks, and the clients of every round.

    RUNS are folders of runs, or folders that hold some: of a deployment, `compare`,
    `sweep` or `tournament`. The page is one HTML file that needs no network.
    """
    with errors_as_sentences():
        print(write_report(runs, output, figures))
