"""`flwr-ctma report`: a page of runs."""

from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.cli.common import in_a_sentence
from flwr_ctma.report import write_report

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders above them.")
    ],
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        list[str],
        typer.Option(help="`pdf`, `svg` or `png`, for papers. Repeatable."),
    ] = [],  # noqa: B006
) -> None:
    """Make a page of runs: accuracy, attacks, and what every client did.

    RUNS are run folders, or folders above them: one run in production will do, as will
    those of `compare`, `sweep` or `tournament`. The page is a single file that needs no
    network.
    """
    with in_a_sentence():
        print(write_report(runs, output, figures))
