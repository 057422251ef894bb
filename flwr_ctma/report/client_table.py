"""The ledger of a run as a table: clients by rounds."""

from collections import Counter
from collections.abc import Mapping
from html import escape
from itertools import groupby
from typing import Any

from flwr_ctma.report.runs import Run

__all__ = ["legend", "roll", "rows_of", "suspected_since"]

# A letter for what became of a reply, its name, and where its bar is: top and height.
_STATES = {
    "t": ("trimmed", 0.5, 0.5),
    "r": ("rejected", 0.0, 1.0),
    "m": ("silent", 0.42, 0.16),
    "k": ("in a skipped round", 0.2, 0.6),
}
_LISTS = {"t": "trimmed", "r": "rejected", "m": "missing"}
_NOT_ASKED, _COUNTED = ".", "c"
_PRINTED = 60


def roll(run: Run) -> str:
    """Write a row for each node, those that stood out most often first."""
    rounds, states = rows_of(run)
    suspected = suspected_since(run)
    first = rounds[0] if rounds else 1
    rows = [
        _row(node, row, first, node in run.malicious, suspected.get(node))
        for node, row in states.items()
    ]
    for i in range(_PRINTED, len(rows)):
        rows[i] = rows[i].replace("<tr", "<tr class='rest'", 1)
    note = (
        f"<p class='rest-note'>{len(rows) - _PRINTED} more nodes are not printed.</p>"
        if len(rows) > _PRINTED
        else ""
    )
    last = rounds[-1] if rounds else 1
    return (
        "<div class='roll'><table><thead><tr><th scope='col'>Node</th>"
        "<th scope='col'>Trimmed</th><th scope='col'>Rejected</th>"
        "<th scope='col'>Silent</th><th scope='col'>Asked</th>"
        f"<th scope='col' class='strip'><span>Round {first}</span>"
        f"<span>Round {last}</span></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def rows_of(run: Run) -> tuple[list[int], dict[int, str]]:
    """Give rounds, and for each node a letter by round, in the order of `roll`.

    The letters are c for a reply that counted, t trimmed, r rejected, m silent, k in a
    round that was skipped, and a dot for a node that was not asked.
    """
    lines = [line for line in run.lines if line.get("asked") is not None]
    states: dict[int, str] = {}
    for i, line in enumerate(lines):
        for node, state in _states(line).items():
            so_far = states.get(node, "")
            states[node] = so_far.ljust(i, _NOT_ASKED) + state
    states = {node: row.ljust(len(lines), _NOT_ASKED) for node, row in states.items()}
    order = sorted(states, key=lambda node: (-_weight(states[node]), node))
    return [line["round"] for line in lines], {node: states[node] for node in order}


def legend() -> str:
    """Show what the bars mean."""
    items = [("c", "counted"), *((s, name) for s, (name, _, _) in _STATES.items())]
    return (
        "<p class='legend'>"
        + "".join(f"<span>{_strip(s, 1, '')} {name}</span>" for s, name in items)
        + "<span><b class='mark'>S</b> suspected</span>"
        + "<span><b class='mark'>M</b> malicious, in a simulation</span></p>"
    )


def _states(line: Mapping[str, Any]) -> dict[int, str]:
    """Tell what became of each reply of a round."""
    skipped = "replies-accepted" in line and "trimmed" not in line
    states = dict.fromkeys(line["asked"], "k" if skipped else _COUNTED)
    for letter, name in _LISTS.items():
        states.update(dict.fromkeys(line.get(name) or [], letter))
    return states


def _row(node: int, row: str, first: int, malicious: bool, since: int | None) -> str:
    count = Counter(row)
    asked = len(row) - count[_NOT_ASKED]
    mark = "<abbr class='mark' title='malicious: this is a simulation'>M</abbr>"
    label = f"{escape(str(node))}{f' {mark}' * malicious}"
    if since is not None:
        label += f" <abbr class='mark' title='suspected in round {since}'>S</abbr>"
    said = ", ".join(f"{name} {count[s]}" for s, (name, _, _) in _STATES.items())
    cells = "".join(f"<td>{count[s] or ''}</td>" for s in "trm")
    return (
        f"<tr data-node='{escape(str(node))}'><th scope='row'>{label}</th>{cells}"
        f"<td>{asked}</td><td class='strip'>"
        f"{_strip(row, first, f'Node {node}: asked {asked}, {said}')}</td></tr>"
    )


def _strip(row: str, first: int, said: str) -> str:
    """Draw one row: equal states in a row are one bar."""
    bars: dict[str, list[str]] = {}
    at = 0
    for state, same in groupby(row):
        length = len(list(same))
        top, height = _STATES[state][1:] if state in _STATES else (0, 1)
        if state != _NOT_ASKED:
            bar = f"M{at} {top}h{length}v{height}h-{length}z"
            bars.setdefault(state, []).append(bar)
        at += length
    paths = "".join(f"<path class='{s}' d='{''.join(d)}'/>" for s, d in bars.items())
    role = f" role='img' aria-label='{escape(said)}'" if said else " aria-hidden='true'"
    return (
        f"<svg class='bars'{role} viewBox='0 0 {len(row)} 1' preserveAspectRatio='none'"
        f" data-first='{first}' data-row='{row}'>{paths}</svg>"
    )


def _weight(row: str) -> float:
    asked = len(row) - row.count(_NOT_ASKED)
    odd = 2 * row.count("r") + row.count("t") + row.count("m")
    return odd / asked if asked else 0.0


def suspected_since(run: Run) -> dict[int, int]:
    """Give the round in which each node was suspected first."""
    since: dict[int, int] = {}
    for line in run.lines:
        for node in line.get("suspected") or []:
            since.setdefault(node, line["round"])
    return since
