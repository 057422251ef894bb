"""What became of every client's replies: a row for each client, a state by round."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flwr_ctma.report.runs import RecordedRun

__all__ = ["ClientRow", "client_rows", "client_states", "suspected_since"]

_LISTS = {"t": "trimmed", "r": "rejected", "m": "missing"}
_NOT_ASKED, _COUNTED, _SKIPPED = ".", "c", "k"
# Top and height of a state's bar, so that states differ without colour.
_BARS = {"t": (0.5, 0.5), "m": (0.42, 0.16), "k": (0.2, 0.6)}


@dataclass(frozen=True)
class ClientRow:
    """One client of a run.

    Attributes
    ----------
    node : int
    states : str
        A letter for each round: c counted, t trimmed, r rejected, m missing, k skipped
        round, dot for not asked.
    is_malicious : bool
        Whether a simulation knows the client to be malicious.
    suspected : int or None
        Round in which the client was first suspected.
    """

    node: int
    states: str
    is_malicious: bool
    suspected: int | None

    @property
    def asked(self) -> int:
        """Rounds in which the client was asked."""
        return len(self.states) - self.states.count(_NOT_ASKED)

    @property
    def description(self) -> str:
        """Counts of the states, in words."""
        count = Counter(self.states)
        return (
            f"Node {self.node}: asked {self.asked}, trimmed {count['t']}, rejected "
            f"{count['r']}, silent {count['m']}, in a skipped round {count['k']}"
        )

    @property
    def bars(self) -> dict[str, str]:
        """SVG path of each state's bars; a round is one unit wide, the row one high."""
        return state_bars(self.states)


def state_bars(states: str) -> dict[str, str]:
    """Return the SVG path of each state: equal states in a row are one bar.

    Examples
    --------
    >>> state_bars("ccr")
    {'c': 'M0 0h2v1h-2z', 'r': 'M2 0h1v1h-1z'}
    """
    paths: dict[str, str] = {}
    start = 0
    for state, same in groupby(states):
        length = len(list(same))
        top, height = _BARS.get(state, (0, 1))
        if state != _NOT_ASKED:
            bar = f"M{start} {top}h{length}v{height}h-{length}z"
            paths[state] = paths.get(state, "") + bar
        start += length
    return paths


def client_rows(run: RecordedRun) -> tuple[list[int], list[ClientRow]]:
    """Return the rounds, and the clients; those that stood out most come first."""
    rounds, states = client_states(run)
    suspected = suspected_since(run)
    rows = [
        ClientRow(node, row, node in run.malicious, suspected.get(node))
        for node, row in states.items()
    ]
    return rounds, rows


def client_states(run: RecordedRun) -> tuple[list[int], dict[int, str]]:
    """Return the rounds, and the states of each node as in `ClientRow.states`."""
    lines = [line for line in run.lines if line.get("asked") is not None]
    states: dict[int, str] = {}
    for i, line in enumerate(lines):
        for node, state in _states_of(line).items():
            states[node] = states.get(node, "").ljust(i, _NOT_ASKED) + state
    whole = {node: row.ljust(len(lines), _NOT_ASKED) for node, row in states.items()}
    order: Sequence[int] = sorted(
        whole, key=lambda node: (-_oddness(whole[node]), node)
    )
    return [line["round"] for line in lines], {node: whole[node] for node in order}


def suspected_since(run: RecordedRun) -> dict[int, int]:
    """Return the round in which each node was first suspected."""
    since: dict[int, int] = {}
    for line in run.lines:
        for node in line.get("suspected") or []:
            since.setdefault(node, line["round"])
    return since


def _states_of(line: Mapping[str, Any]) -> dict[int, str]:
    """Return the state of each node that was asked in a round."""
    skipped = "replies-accepted" in line and "trimmed" not in line
    states = dict.fromkeys(line["asked"], _SKIPPED if skipped else _COUNTED)
    for letter, name in _LISTS.items():
        states.update(dict.fromkeys(line.get(name) or [], letter))
    return states


def _oddness(row: str) -> float:
    asked = len(row) - row.count(_NOT_ASKED)
    odd = 2 * row.count("r") + row.count("t") + row.count("m")
    return odd / asked if asked else 0.0
