"""Final results and costs of each configuration, as cells of a table."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr_ctma.report.groups import RunGroup, Scenario

__all__ = ["OverviewRow", "OverviewTable", "overview_tables"]

_Write = Callable[[RunGroup], str]


@dataclass(frozen=True)
class OverviewRow:
    """One configuration."""

    label: str
    cells: Sequence[str]
    is_best: bool


@dataclass(frozen=True)
class OverviewTable:
    """The configurations of one scenario."""

    title: str
    columns: Sequence[str]
    rows: Sequence[OverviewRow]


def overview_tables(scenarios: Sequence[Scenario]) -> list[OverviewTable]:
    """Return a table for each scenario; columns that are empty everywhere are left out.

    The best final accuracy of a scenario is marked.
    """
    groups = [group for scenario in scenarios for group in scenario.groups]
    shown = {
        name: write
        for name, write in _COLUMNS.items()
        if any(write(group) for group in groups)
    }
    tables = []
    for scenario in scenarios:
        finals = [_final(group) for group in scenario.groups]
        best = max((final for final in finals if final is not None), default=None)
        several = len(scenario.groups) > 1
        rows = [
            OverviewRow(
                group.label,
                [write(group) for write in shown.values()],
                several and final is not None and final == best,
            )
            for group, final in zip(scenario.groups, finals, strict=True)
        ]
        tables.append(OverviewTable(scenario.title, list(shown), rows))
    return tables


def _rounds(group: RunGroup) -> str:
    """Return the number of finished rounds, and of planned ones if they are more."""
    planned = group.runs[0].planned_rounds
    return str(group.last) if group.is_finished else f"{group.last} of {planned}"


def _final(group: RunGroup) -> float | None:
    values = group.final("accuracy") if group.is_finished else []
    return statistics.fmean(values) if values else None


def _accuracy(group: RunGroup) -> str:
    return _spread([100 * value for value in group.final("accuracy")], "{:.1f}")


def _worst_late(group: RunGroup) -> str:
    worst = group.worst_late("accuracy")
    return "" if worst is None or group.last < 4 else f"{100 * worst:.1f}"


def _loss(group: RunGroup) -> str:
    values = group.final("loss")
    small = max(values, default=0) < 1000
    return _spread(values, "{:.3f}" if small else "{:.3g}")


def _spread(values: Sequence[float], spec: str) -> str:
    if not values:
        return ""
    mean = spec.format(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {spec.format(statistics.stdev(values))}"


def _average(name: str, spec: str = "{:.1f}", unit: float = 1) -> _Write:
    def write(group: RunGroup) -> str:
        value = group.average(name)
        return "" if value is None else spec.format(value / unit)

    return write


_COLUMNS: dict[str, _Write] = {
    "Runs": lambda group: str(len(group.runs)),
    "Rounds": _rounds,
    "Accuracy (%)": _accuracy,
    "Worst in second half (%)": _worst_late,
    "Loss": _loss,
    "Arrivals": _average("arrivals"),
    "Steps": _average("steps"),
    "Malicious kept": _average("malicious-kept"),
    "Trimmed": _average("trimmed"),
    "Rejected": _average("rejected"),
    "Silent": _average("missing"),
    "Seconds": _average("seconds", "{:.2f}"),
    "MB sent": _average("bytes-sent", "{:.2f}", 1e6),
    "MB received": _average("bytes-received", "{:.2f}", 1e6),
}
