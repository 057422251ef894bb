"""The command line: `flwr-ctma` and its commands, one in each file.

It exits with 0 if all went well, 1 if something failed or a value is wrong, 2 if the
line cannot be read, and 130 after Ctrl-C.
"""

from typing import Annotated

import typer

from flwr_ctma import __version__
from flwr_ctma.cli.compare import compare
from flwr_ctma.cli.report import report
from flwr_ctma.cli.simulate import simulate
from flwr_ctma.cli.sweep import sweep
from flwr_ctma.cli.tournament import tournament
from flwr_ctma.cli.verify import verify

__all__ = ["app", "command", "main"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for function in (compare, tournament, sweep, report, simulate, verify):
    app.command()(function)


def _show_version(wished: bool) -> None:
    if wished:
        print(f"flwr-ctma {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Byzantine-robust federated learning for Flower."""


command = typer.main.get_command(app)


def main() -> None:
    """Run the command line."""
    command(prog_name="flwr-ctma")
