"""The page: sections of HTML, its style and its script in one file."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any

from flwr_ctma.report.charts import line_charts
from flwr_ctma.report.client_table import legend, roll
from flwr_ctma.report.groups import Scenario, Spread, scenarios, varying
from flwr_ctma.report.heat import heat_map, scores_of
from flwr_ctma.report.overview import overview
from flwr_ctma.report.runs import Run, TournamentResult

__all__ = ["page"]

# Nothing is fetched, whatever the page holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, runs: Sequence[Run], cups: Sequence[TournamentResult]) -> str:
    """Write the page about runs and tournaments."""
    found = scenarios(runs)
    heats = [heat_map(scores, title) for title, scores in scores_of(found).items()]
    heats += [
        heat_map(scores, f"{cup.path.name}: {f} of {cup.num_nodes} clients malicious")
        for cup in cups
        for f, scores in cup.scores.items()
    ]
    sections = [
        ("Overview", overview(found)),
        ("Accuracy by round", _charts(found, "accuracy", "%")),
        ("Loss by round", _charts(found, "loss", "")),
        ("Worst attack", _heats(heats)),
        ("Clients", _clients(runs)),
        ("Configuration", _configuration(runs)),
        ("Environment", _environment(runs)),
    ]
    kept = [(title, body) for title, body in sections if body]
    links = "".join(f"<a href='#{_id(t)}'>{escape(t)}</a>" for t, _ in kept)
    body = "".join(
        f"<section id='{_id(t)}'><h2>{escape(t)}</h2>{b}</section>" for t, b in kept
    )
    ours = files("flwr_ctma.report")
    return (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{escape(title)}</title>"
        f"<style>{(ours / 'page.css').read_text('utf-8')}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>"
        f"<p>{escape(_headline(runs, found, cups))}</p></header>"
        f"<nav>{links}</nav><main>{body}</main>"
        f"<footer>flwr-ctma, {datetime.now():%Y-%m-%d %H:%M}</footer>"
        f"<script>{(ours / 'page.js').read_text('utf-8')}</script></body></html>"
    )


def _heats(heats: Sequence[str]) -> str:
    note = (
        "<p class='note'>Last value, mean over seeds, times 100. The frame is around a "
        "rule’s worst case; the best worst case comes first.</p>"
    )
    return "".join([*heats, note]) if heats else ""


def _headline(
    runs: Sequence[Run], found: Sequence[Scenario], cups: Sequence[TournamentResult]
) -> str:
    labels = {group.label for scenario in found for group in scenario.groups}
    counts = {
        "run": len(runs),
        "configuration": len(labels),
        "scenario": len(found),
        "tournament": len(cups),
    }
    said = [f"{n} {word}{'s' * (n > 1)}" for word, n in counts.items() if n]
    return " · ".join(said)


def _charts(found: Sequence[Scenario], metric: str, unit: str) -> str:
    panels: dict[str, dict[str, Spread]] = {}
    for scenario in found:
        for group in scenario.groups:
            curve = group.spread(metric)
            if any(value is not None for value in curve.mean):
                panels.setdefault(scenario.title, {})[group.label] = curve
    if not panels:
        return ""
    figures = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"
        for title, chart in zip(panels, line_charts(panels, unit == "%"), strict=True)
    )
    names = {run.key(metric) for s in found for g in s.groups for run in g.runs}
    said = ", ".join(sorted(name for name in names if name))
    said += f" ({unit})." if unit else "."
    if any(len(group.runs) > 1 for scenario in found for group in scenario.groups):
        said += " Lines are means over seeds, bands go from the least to the greatest."
    return f"<div class='figures'>{figures}</div><p class='note'>{escape(said)}</p>"


def _clients(runs: Sequence[Run]) -> str:
    told = [run for run in runs if any(line.get("asked") for line in run.lines)]
    if not told:
        return ""
    first = next((run for run in told if _has_odd(run)), told[0])
    rolls = [
        f"<details{' open' * (run is first)}>"
        f"<summary>{escape(_name(run, runs))}</summary>{roll(run)}</details>"
        for run in told
    ]
    return (
        f"{legend()}<p class='find'><label>Node <input type='search' id='node' "
        f"placeholder='id'></label></p>{''.join(rolls)}"
    )


def _has_odd(run: Run) -> bool:
    names = ("trimmed", "rejected", "missing")
    return any(line.get(name) for line in run.lines for name in names)


def _configuration(runs: Sequence[Run]) -> str:
    differing = varying(runs)
    keys = dict.fromkeys([*differing, *(key for run in runs for key in run.config)])
    values = {
        key: dict.fromkeys(_text(run.config[key]) for run in runs if key in run.config)
        for key in keys
        if key != "output"
    }
    return _table((key, ", ".join(said)) for key, said in values.items())


def _environment(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.environment)
    return _table(
        (
            n,
            ", ".join(
                sorted({_text(r.environment[n]) for r in runs if n in r.environment})
            ),
        )
        for n in names
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table class='pairs'><tbody>{body}</tbody></table>" if body else ""


def _name(run: Run, runs: Sequence[Run]) -> str:
    keys = [*varying(runs), "seed"]
    said = [f"{k} {_text(run.config[k])}" for k in keys if k in run.config]
    return ", ".join(said) if len(runs) > 1 and said else run.path.name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")
