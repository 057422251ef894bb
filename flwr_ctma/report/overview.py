"""How runs ended, and what they cost: a table."""

import statistics
from collections.abc import Callable, Sequence
from html import escape

from flwr_ctma.report.groups import Group, Scenario

__all__ = ["overview"]

_Write = Callable[[Group], str]


def overview(found: Sequence[Scenario]) -> str:
    """Write a row for each configuration, the best of each scenario in bold."""
    rows = {
        id(group): [write(group) for write in _COLUMNS.values()]
        for scenario in found
        for group in scenario.groups
    }
    if not rows:
        return ""
    shown = [any(column) for column in zip(*rows.values(), strict=True)]
    body = []
    for scenario in found:
        if scenario.title:
            body.append(
                f"<tr class='scenario'><th colspan='{sum(shown) + 1}'>"
                f"{escape(scenario.title)}</th></tr>"
            )
        best = max(map(_final, scenario.groups))
        for group in scenario.groups:
            top = len(scenario.groups) > 1 and _final(group) == best > -1
            cells = "".join(f"<td>{c}</td>" for c in _only(rows[id(group)], shown))
            body.append(
                f"<tr{' class=best' * top}><th scope='row'>{escape(group.label)}</th>"
                f"{cells}</tr>"
            )
    head = "".join(f"<th scope='col'>{name}</th>" for name in _only([*_COLUMNS], shown))
    return (
        f"<div class='wide'><table class='numbers'><thead><tr><th></th>{head}</tr>"
        f"</thead><tbody>{''.join(body)}</tbody></table></div><p class='note'>Accuracy "
        "and loss are those after the last round; mean ± standard deviation where "
        "several runs differ in their seed alone. All else is the average of a round."
        "</p>"
    )


def _rounds(group: Group) -> str:
    """Count finished rounds; say of how many if a run stopped early."""
    planned = group.runs[0].planned
    return str(group.last) if group.is_finished else f"{group.last} of {planned}"


def _final(group: Group) -> float:
    values = group.final("accuracy") if group.is_finished else []
    return statistics.fmean(values) if values else -1.0


def _accuracy(group: Group) -> str:
    return _spread([100 * value for value in group.final("accuracy")], "{:.1f}")


def _loss(group: Group) -> str:
    values = group.final("loss")
    small = max(values, default=0) < 1000
    return _spread(values, "{:.3f}" if small else "{:.3g}")


def _spread(values: Sequence[float], spell: str) -> str:
    if not values:
        return ""
    mean = spell.format(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {spell.format(statistics.stdev(values))}"


def _average(name: str, spell: str = "{:.1f}", unit: float = 1) -> _Write:
    def write(group: Group) -> str:
        value = group.average(name)
        return "" if value is None else spell.format(value / unit)

    return write


def _only(values: Sequence[str], shown: Sequence[bool]) -> list[str]:
    return [value for value, show in zip(values, shown, strict=True) if show]


_COLUMNS: dict[str, _Write] = {
    "Runs": lambda group: str(len(group.runs)),
    "Rounds": _rounds,
    "Accuracy (%)": _accuracy,
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
