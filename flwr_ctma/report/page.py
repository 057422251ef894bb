"""The page: one HTML file with its style, its script and its charts."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flwr_ctma.experiments.curves import Curve
from flwr_ctma.report.charts import line_charts
from flwr_ctma.report.client_table import client_rows, state_bars
from flwr_ctma.report.groups import Scenario, group_runs, run_label, varying_keys
from flwr_ctma.report.overview import overview_tables
from flwr_ctma.report.render import printable, vega_script
from flwr_ctma.report.runs import RecordedRun, RecordedTournament
from flwr_ctma.report.score_tables import score_tables

__all__ = ["accuracy_panels", "render_page"]

_PRINTED_CLIENTS = 60
_LEGEND = {
    "c": "counted",
    "t": "trimmed",
    "r": "rejected",
    "m": "silent",
    "k": "in a skipped round",
}


def render_page(
    title: str,
    runs: Sequence[RecordedRun],
    tournaments: Sequence[RecordedTournament],
    folder: Path,
) -> str:
    """Return the page about runs and tournaments.

    Parameters
    ----------
    title : str
    runs : sequence of RecordedRun
    tournaments : sequence of RecordedTournament
    folder : Path
        Where the page will be; links to logs are relative to it.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flwr_ctma.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    scenarios = group_runs(runs)
    resources = files("flwr_ctma.report")
    charts = {
        "Accuracy by round": _charts(scenarios, "accuracy", "Accuracy (%)", True),
        "Loss by round": _charts(scenarios, "loss", "Loss", False),
    }
    page: str = environment.get_template("page.html.jinja").render(
        title=title,
        headline=_headline(runs, scenarios, tournaments),
        settings=_common_settings(runs),
        overview=overview_tables(scenarios),
        charts={name: some for name, some in charts.items() if some},
        several_seeds=any(len(g.runs) > 1 for s in scenarios for g in s.groups),
        score_tables=score_tables(scenarios, tournaments),
        clients=_clients(runs),
        printed_clients=_PRINTED_CLIENTS,
        legend=[(name, state_bars(letter)) for letter, name in _LEGEND.items()],
        runs=[_run_entry(run, runs, folder) for run in runs],
        configuration=_configuration(runs),
        environment=_environment(runs),
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        style=(resources / "page.css").read_text("utf-8"),
        vega=vega_script() if any(charts.values()) else "",
        script=(resources / "page.js").read_text("utf-8"),
    )
    return page


def accuracy_panels(
    scenarios: Sequence[Scenario], metric: str = "accuracy"
) -> dict[str, dict[str, Curve]]:
    """Return the curves of a metric: title of the scenario → label → curve."""
    panels: dict[str, dict[str, Curve]] = {}
    for scenario in scenarios:
        for group in scenario.groups:
            curve = group.curve(metric)
            if any(value is not None for value in curve.mean):
                panels.setdefault(scenario.title, {})[group.label] = curve
    return panels


def _charts(
    scenarios: Sequence[Scenario], metric: str, y: str, share: bool
) -> dict[str, Any]:
    panels = accuracy_panels(scenarios, metric)
    if not panels:
        return {}
    names = {
        name
        for scenario in scenarios
        for group in scenario.groups
        for run in group.runs
        if (name := run.key(metric))
    }
    specs = [
        (title, json.dumps(printable(spec)))
        for title, spec in line_charts(panels, y, share)
    ]
    labels = list(
        dict.fromkeys(label for curves in panels.values() for label in curves)
    )
    rows = [
        (title, label, number, mean, least, greatest)
        for title, curves in panels.items()
        for label, c in curves.items()
        for number, mean, least, greatest in zip(
            c.rounds, c.mean, c.least, c.greatest, strict=True
        )
    ]
    return {
        "metric": ", ".join(sorted(names)),
        "specs": specs,
        "labels": labels,
        "csv": json.dumps(
            [("scenario", "line", "round", "mean", "least", "greatest"), *rows]
        ),
    }


def _headline(
    runs: Sequence[RecordedRun],
    scenarios: Sequence[Scenario],
    tournaments: Sequence[RecordedTournament],
) -> str:
    labels = {group.label for scenario in scenarios for group in scenario.groups}
    counts = {
        "run": len(runs),
        "configuration": len(labels),
        "scenario": len(scenarios),
        "tournament": len(tournaments),
    }
    return " · ".join(f"{n} {word}{'s' * (n > 1)}" for word, n in counts.items() if n)


def _common_settings(runs: Sequence[RecordedRun]) -> str:
    """Return the attacks, numbers of malicious clients and datasets of all runs."""

    def values(key: str) -> list[str]:
        return list(
            dict.fromkeys(_text(r.config[key]) for r in runs if key in r.config)
        )

    attacks, datasets = values("attack"), values("dataset")
    f, n = values("num-malicious-nodes"), values("num-nodes")
    parts = [f"Attack: {', '.join(attacks)}"] if attacks else []
    if f and n:
        parts.append(f"{', '.join(f)} of {', '.join(n)} clients malicious")
    parts += [f"Dataset: {', '.join(datasets)}"] if datasets else []
    return " · ".join(parts)


def _clients(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    asked = [run for run in runs if any(line.get("asked") for line in run.lines)]
    names = ("trimmed", "rejected", "missing")
    odd = (r for r in asked if any(line.get(n) for line in r.lines for n in names))
    opened = next(odd, asked[0] if asked else None)
    entries = []
    for run in asked:
        rounds, rows = client_rows(run)
        entries.append(
            {
                "name": run_label(run, runs),
                "open": run is opened,
                "first": rounds[0],
                "last": rounds[-1],
                "rows": rows,
            }
        )
    return entries


def _run_entry(
    run: RecordedRun, runs: Sequence[RecordedRun], folder: Path
) -> dict[str, Any]:
    links = [
        (f.name, quote(os.fsencode(os.path.relpath(f.resolve(), folder.resolve()))))
        for f in run.files
    ]
    key = run.key("accuracy")
    values = [value for value in run.values(key) if value is not None]
    return {
        "name": run_label(run, runs),
        "rounds": str(max(run.rounds, default=0)),
        "accuracy": f"{100 * values[-1]:.1f}" if values else "",
        "links": links,
    }


def _configuration(runs: Sequence[RecordedRun]) -> list[tuple[str, str]]:
    keys = dict.fromkeys(
        [*varying_keys(runs), *(k for run in runs for k in run.config)]
    )
    return _distinct(keys, [run.config for run in runs])


def _environment(runs: Sequence[RecordedRun]) -> list[tuple[str, str]]:
    names = dict.fromkeys(name for run in runs for name in run.environment)
    return _distinct(names, [run.environment for run in runs])


def _distinct(
    keys: Iterable[str], mappings: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Return the different values of each key, in the order of the runs."""
    return [
        (key, ", ".join(dict.fromkeys(_text(m[key]) for m in mappings if key in m)))
        for key in keys
        if key != "output"
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
