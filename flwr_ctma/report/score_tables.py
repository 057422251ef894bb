"""Scores of rules by attack, as cells of a table with a colour for each value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flwr_ctma.experiments.scores import best_first, worst
from flwr_ctma.report.groups import RunGroup, Scenario
from flwr_ctma.report.runs import RecordedTournament
from flwr_ctma.report.scores import attacks_of, format_score, is_share

__all__ = ["ScoreCell", "ScoreTable", "score_tables"]

# Cividis at equal steps: lightness grows with the value, for any colour vision.
_CIVIDIS = (
    (0, 34, 78),
    (65, 77, 107),
    (124, 123, 120),
    (188, 175, 111),
    (254, 232, 56),
)


@dataclass(frozen=True)
class ScoreCell:
    """One score."""

    text: str
    style: str
    is_worst: bool = False


@dataclass(frozen=True)
class ScoreTable:
    """Rules by attack; the last cell of each row is the rule's worst score."""

    title: str
    attacks: Sequence[str]
    rows: Mapping[str, Sequence[ScoreCell]]


def score_tables(
    scenarios: Sequence[Scenario], tournaments: Sequence[RecordedTournament]
) -> list[ScoreTable]:
    """Return a table for each world with several attacks, and for each tournament."""
    tables = [_table(title, rows) for title, rows in _by_world(scenarios).items()]
    for one in tournaments:
        for f, by_rule in one.scores.items():
            title = f"{one.path.name}: {f} of {one.num_nodes} clients malicious"
            tables.append(_table(f"{title}, {one.metric}", by_rule))
    return tables


def _by_world(
    scenarios: Sequence[Scenario],
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Gather final accuracies: title without the attack → rule → attack → value."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for scenario in scenarios:
        attack = str(scenario.groups[0].runs[0].config.get("attack"))
        title = scenario.title.removeprefix(attack).removeprefix(", ")
        for group in scenario.groups:
            row = found.setdefault(title, {}).setdefault(group.label, {})
            row[attack] = _final(group)
    return {
        title: best_first(rows)
        for title, rows in found.items()
        if len(attacks_of(rows)) > 1
    }


def _final(group: RunGroup) -> float | None:
    values = group.final("accuracy") if group.is_finished else []
    return fmean(values) if values else None


def _table(title: str, by_rule: Mapping[str, Mapping[str, float | None]]) -> ScoreTable:
    attacks, share = attacks_of(by_rule), is_share(by_rule)
    known = [
        value
        for row in by_rule.values()
        for value in row.values()
        if value is not None and math.isfinite(value)
    ]
    low, high = (
        (0.0, 1.0) if share else (min(known, default=0.0), max(known, default=1.0))
    )
    rows = {}
    for rule, row in by_rule.items():
        least = worst(row)
        rows[rule] = [
            ScoreCell(
                format_score(value, share),
                _style(value, low, high),
                value is not None and value == least and i < len(attacks),
            )
            for i, value in enumerate([*(row.get(a) for a in attacks), least])
        ]
    return ScoreTable(title, attacks, rows)


def _style(value: float | None, low: float, high: float) -> str:
    if value is None or not math.isfinite(value):
        return ""
    share = (value - low) / (high - low) if high > low else 1.0
    place = min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    step = min(int(place), len(_CIVIDIS) - 2)
    colour = [
        round(a + (place - step) * (b - a))
        for a, b in zip(_CIVIDIS[step], _CIVIDIS[step + 1], strict=True)
    ]
    ink = "#000" if share > 0.5 else "#fff"
    return f"background:rgb({','.join(map(str, colour))});color:{ink}"
