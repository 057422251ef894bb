"""The command line: `flwr-ctma` and its commands.

The exit code is 0 for success, 1 if a run failed or a value is wrong, 2 if the command
line is wrong, and 130 after Ctrl-C.
"""

from typing import Annotated

import typer

from flwr_ctma import __version__
from flwr_ctma.cli.advise import advise
from flwr_ctma.cli.benchmark import benchmark
from flwr_ctma.cli.catalogue import attacks, rules
from flwr_ctma.cli.compare import compare
from flwr_ctma.cli.report import report
from flwr_ctma.cli.simulate import simulate
from flwr_ctma.cli.sweep import sweep
from flwr_ctma.cli.tournament import tournament
from flwr_ctma.cli.verify import verify

__all__ = ["app", "command", "main"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(compare, tournament, sweep, benchmark, advise, report, simulate),
    *(rules, attacks, verify),
)
for function in COMMANDS:
    app.command()(function)


def _show_version(requested: bool) -> None:
    if requested:
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
