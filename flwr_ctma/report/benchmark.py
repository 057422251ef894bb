"""Results of the benchmark: figures and a table in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr_ctma.report.colours import line_styles

__all__ = ["benchmark_table", "loss_chart", "share_chart"]

Spec = dict[str, Any]
Results = Sequence[Mapping[str, Any]]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def loss_chart(results: Results, field: str, title: str) -> Spec:
    """Return a figure of points lost: a panel for each regime, a dot for each rule.

    Parameters
    ----------
    results : sequence of Mapping[str, Any]
        As `summarize` returns them.
    field : str
        `cost`, the loss without an attack, or `loss`, that in the worst attack.
    title : str
    """
    rules = _rules(results)
    y: Spec = {"field": "rule", "type": "nominal", "title": None, "sort": None}
    y |= {"scale": {"domain": rules}}
    x = {"type": "quantitative", "title": "Points of accuracy lost"}
    return _panels(
        results,
        field,
        title,
        [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {**x, "field": "low"},
                    "x2": {"field": "high"},
                    "y": y,
                    "color": _colour(rules),
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {
                    "x": {**x, "field": "mean"},
                    "y": y,
                    "color": _colour(rules),
                },
            },
        ],
        by_share=True,
    )


def share_chart(results: Results, title: str) -> Spec:
    """Return a figure of the loss in the worst attack by the share of liars."""
    rules = _rules(results)
    x: Spec = {
        "field": "share",
        "type": "quantitative",
        "title": "Malicious clients (%)",
    }
    x |= {"scale": {"domain": [0, 50]}}
    y = {"type": "quantitative", "title": "Points lost in the worst attack"}
    colour = _colour(rules) | {"legend": {"title": None, "orient": "bottom"}}
    mean = {"x": x, "y": {**y, "field": "mean"}, "color": colour}
    return _panels(
        results,
        "loss",
        title,
        [
            {"mark": {"type": "line", "point": True}, "encoding": mean},
            {
                "mark": {"type": "rule", "opacity": 0.5},
                "encoding": {
                    **mean,
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                },
            },
        ],
        by_share=False,
    )


def benchmark_table(results: Results) -> str:
    """Return a table in Markdown, with a row for each rule in each regime."""
    lines = [
        "| regime | rule | rate | no attack (%) | worst (%) | attack | points lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        lines.append(
            f"| {_regime(one)} | `{one['rule']}`{_memory(one)} "
            f"| {one['learning-rate']:g} | {_cell(one['unattacked'])} "
            f"| {_cell(one['worst'])} | `{one['worst']['attack']}` "
            f"| {_cell(one['loss'])} |"
        )
    return "\n".join(lines) + "\n"


def _panels(
    results: Results,
    field: str,
    title: str,
    layers: Sequence[Spec],
    by_share: bool,
) -> Spec:
    panels: dict[str, list[Spec]] = {}
    for one in results:
        name = _regime(one) if by_share else _regime(one).rpartition(", ")[0]
        panels.setdefault(name, []).append(next(_values([one], field)))
    charts = [
        {
            "title": {"text": name, "anchor": "start", "fontSize": 12},
            "width": 300,
            "height": 30 * len(_rules(results)) if by_share else 220,
            "data": {"values": values},
            "layer": list(layers),
        }
        for name, values in panels.items()
    ]
    heading = {"text": title, "anchor": "start"}
    return {
        **{"$schema": _SCHEMA, "background": "white", "title": heading},
        **{"concat": charts, "columns": 2},
        "resolve": {"scale": {"x": "shared", "color": "shared"}},
    }


def _values(results: Results, field: str) -> Iterator[Spec]:
    for one in results:
        mean, interval = one[field]["mean"], one[field]["interval"]
        low, high = interval or (mean, mean)
        share = 100 * one["malicious"] / one["num-nodes"]
        yield {
            **{"rule": _rule(one), "share": share, "mean": 100 * mean},
            **{"low": 100 * low, "high": 100 * high},
        }


def _rules(results: Results) -> list[str]:
    return list(dict.fromkeys(map(_rule, results)))


def _rule(one: Mapping[str, Any]) -> str:
    return f"{one['rule']}{_memory(one)}"


def _memory(one: Mapping[str, Any]) -> str:
    return f", memory {one['memory']:g}" if one["memory"] else ""


def _regime(one: Mapping[str, Any]) -> str:
    varied = ("local-steps", "alpha", "fraction-train")
    more = [f"{key} {one['regime'][key]:g}" for key in varied if key in one["regime"]]
    words = [f"steps on the {one['steps']}", f"data {one['data']}", *more]
    return ", ".join([*words, f"{one['malicious']} of {one['num-nodes']}"])


def _colour(rules: Sequence[str]) -> Spec:
    styles = line_styles(rules)
    scale = {"domain": list(rules), "range": [styles[rule].colour for rule in rules]}
    return {"field": "rule", "type": "nominal", "scale": scale, "legend": None}


def _cell(summary: Mapping[str, Any]) -> str:
    interval = summary["interval"]
    ends = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return f"{100 * summary['mean']:.1f}{ends}"
