"""The command line as a page, from what its `--help` is made of."""

from collections.abc import Iterator
from typing import Any

import click
import typer

from flwr_ctma.cli import app


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put every command, with its options, below the page's text."""
    if page.file.src_uri != "reference/commands.md":
        return markdown
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    commands = group.commands.values()
    return "\n".join([markdown, *(line for one in commands for line in _lines(one))])


def _lines(command: click.Command) -> Iterator[str]:
    yield f"\n## flwr-ctma {command.name}\n"
    yield f"{command.help}\n"
    yield "| | default | |\n|---|---|---|"
    for param in command.params:
        if isinstance(param, click.Option):
            name = "`, `".join(param.opts)
        else:
            name = param.human_readable_name.upper()
        says = getattr(param, "help", None) or ""
        if isinstance(param.type, click.Choice):
            says += f" One of {', '.join(map(str, param.type.choices))}."
        yield f"| `{name}` | {_default(param)} | {says} |"


def _default(param: click.Parameter) -> str:
    shown = getattr(param, "show_default", None)
    if isinstance(shown, str):
        return f"`{shown}`"
    values = (
        param.default if isinstance(param.default, list | tuple) else [param.default]
    )
    return ", ".join(f"`{v}`" for v in values if v not in (None, ""))
