"""`flwr-ctma rules` and `flwr-ctma attacks`: names, one line each, and the papers."""

import inspect
import re
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flwr_ctma.aggregators import RULES
from flwr_ctma.attacks import ATTACKS
from flwr_ctma.cli.options import Json
from flwr_ctma.cli.screen import Screen

__all__ = ["attacks", "rules"]


def rules(json: Json = False) -> None:
    """List the aggregation rules: name, description, paper."""
    _show(RULES, json)


def attacks(json: Json = False) -> None:
    """List the attacks: name, description, paper."""
    _show(ATTACKS, json)


def _show(registry: Mapping[str, type], as_json: bool) -> None:
    screen = Screen(quiet=False, as_json=as_json)
    entries = {name: _described(kind) for name, kind in sorted(registry.items())}
    if as_json:
        screen.json(
            {
                name: {"description": description, "paper": paper}
                for name, (description, paper) in entries.items()
            }
        )
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("description")
    table.add_column("paper")
    for name, (description, paper) in entries.items():
        table.add_row(Text(name), Text(description), Text(paper))
    screen.print(table)


def _described(kind: type) -> tuple[str, str]:
    """Return the first sentence of a class's docstring, and its first reference.

    Examples
    --------
    >>> from flwr_ctma.aggregators import Krum
    >>> _described(Krum)[1].partition(",")[0]
    'Blanchard et al.'
    """
    text = inspect.getdoc(kind) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    found = re.search(r"^References\n-+\n(.*?)(?:\n\n|\Z)", text, re.M | re.S)
    paper = " ".join(found[1].split()) if found else ""
    return summary, paper
