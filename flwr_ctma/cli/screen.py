"""What a command shows: tables, progress, JSON, and errors as sentences."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from flwr_ctma.experiments.estimate import format_seconds
from flwr_ctma.experiments.processes import RunFailed
from flwr_ctma.report.render import can_render, write_chart

__all__ = ["Screen", "errors_as_sentences"]


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Exit with 1 and the sentence of an error that the user can fix."""
    try:
        yield
    except (ValueError, OSError, RunFailed) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"Cannot read or write `{error.filename}`: {error.strerror}. "
            text += "Name another path, or change its permissions."
        print(text, file=sys.stderr)
        raise typer.Exit(1) from error


class Screen:
    """The output of a command: tables or JSON, and how verbose it is.

    Texts that come from files or users are never read as markup.

    Parameters
    ----------
    quiet : bool
        Show errors only.
    as_json : bool
        Write one JSON object at the end, and progress to the standard error.
    """

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.quiet, self.as_json = quiet, as_json
        self.console = Console(stderr=as_json, quiet=quiet, highlight=False)

    def print(self, *items: Any, style: str = "") -> None:
        """Print texts and tables, unless the command is quiet."""
        for item in items:
            shown = Text(item, style=style) if isinstance(item, str) else item
            self.console.print(shown, soft_wrap=isinstance(item, str))

    def error(self, text: str) -> None:
        """Print an error, even if the command is quiet."""
        print(text, file=sys.stderr)

    def estimate(
        self, count: int, what: str, seconds: float | None, workers: int
    ) -> None:
        """Print how many runs follow, and how long they take."""
        if not count:
            self.print(f"All {what} are finished already.")
            return
        processes = "1 process" if workers == 1 else f"{workers} processes"
        text = "no estimate, as the app has no key `num-server-rounds`"
        if seconds is not None:
            text = f"about {format_seconds(seconds)} in {processes}"
        self.print(f"{count} {what} left: {text}.")

    def figure(self, spec: Mapping[str, Any], *paths: Path) -> None:
        """Write a chart to files, if the packages to draw it are installed."""
        if not can_render():
            self.print('No figure: install `pip install "flwr-ctma[report]"`.')
            return
        for path in paths:
            write_chart(spec, path)

    def json(self, value: Mapping[str, Any]) -> None:
        """Write the results, if they are asked for as JSON."""
        if self.as_json:
            print(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it: infinite numbers become null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    infinite = isinstance(value, float) and value - value != 0
    return None if infinite else value
