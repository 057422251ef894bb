"""What the commands share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.experiments.processes import RunFailed
from flwr_ctma.simulation.batched import BatchedGrid
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = ["Batched", "Folder", "RunConfig", "in_a_sentence", "kind_of_grid"]

Folder = Annotated[Path, typer.Argument(help="Folder of the Flower app.")]
RunConfig = Annotated[
    list[str],
    typer.Option("--run-config", "-c", help="As for `flwr run`: 'key=1 other=\"x\"'."),
]

Batched = Annotated[
    bool,
    typer.Option("--batched", help="Compute the clients of a round together: quicker."),
]


def kind_of_grid(batched: bool) -> type[InProcessGrid]:
    """Choose what runs the clients in one process."""
    return BatchedGrid if batched else InProcessGrid


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """End with the sentence of an error that is the user's to mend, not a traceback."""
    try:
        yield
    except (ValueError, OSError, RunFailed) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
