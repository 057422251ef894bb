"""`flwr-ctma report`: a page of runs."""

from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.cli.common import errors_as_sentences
from flwr_ctma.report import write_report

__all__ = ["report"]


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or folders above them.")
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
    """Make a page of runs: accuracy, attacks, and the clients in every round.

    RUNS are run folders or folders above them: one run in production, or those of
    `compare`, `sweep` and `tournament`. The page is a single file that needs no
    network.
    """
    with errors_as_sentences():
        print(write_report(runs, output, figures))
