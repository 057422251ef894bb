"""The command line: `flwr-ctma` and its commands.

The exit code is 0 for success, 1 if a run failed or a value is wrong, 2 if the command
line is wrong, and 130 after Ctrl-C.
"""

from typing import Annotated

import click
import typer
from typer.core import TyperGroup

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
from flwr_ctma.errors import did_you_mean

__all__ = ["app", "command", "main"]


class Commands(TyperGroup):
    """The commands; for a misspelled name, one suggestion in all versions of Typer."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name."""
        if self.get_command(ctx, args[0]) is None:
            remedy = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command '{args[0]}'. {remedy}".rstrip())
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
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
