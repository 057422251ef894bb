"""The command line: `flwr-ctma` and its commands, one in each file."""

import typer

from flwr_ctma.cli.compare import compare
from flwr_ctma.cli.report import report
from flwr_ctma.cli.simulate import simulate
from flwr_ctma.cli.sweep import sweep
from flwr_ctma.cli.tournament import tournament

__all__ = ["app", "main"]

app = typer.Typer(
    help="Byzantine-robust federated learning for Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, tournament, sweep, report, simulate):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="flwr-ctma")
