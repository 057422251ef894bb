"""Charts as Vega-Lite specifications, for the page and for papers alike.

Values of runs may hold anything. So they are data, domains or text of a specification,
never names of fields and never lists to sort by, which Vega-Lite reads as expressions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr_ctma.experiments.curves import Curve
from flwr_ctma.report.colours import line_styles
from flwr_ctma.report.scores import attacks_of, format_score, is_share

__all__ = ["CLIENT_STATES", "client_chart", "line_chart", "line_charts", "score_chart"]

Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
_WIDTH, _HEIGHT = 420, 260
_LETTERS = 40  # of a label
_WIDE_RANGE = 50  # greatest value ÷ least: from here on, a logarithmic axis

_LEGEND = {
    "labelLimit": 300,
    "orient": "bottom",
    "symbolType": "stroke",
    "symbolSize": 300,
    "symbolOpacity": 1,
    "symbolStrokeWidth": 2,
}
_SELECTIONS: list[Spec] = [
    {
        "name": "shown",
        "select": {"type": "point", "fields": ["label"], "toggle": "true"},
        "bind": "legend",
    },
    {"name": "zoom", "select": "interval", "bind": "scales"},
]
_DIFFERENCE: list[Spec] = [
    {"calculate": "datum.label === baseline ? datum.raw_mean : null", "as": "own"},
    {
        "joinaggregate": [{"op": "max", "field": "own", "as": "reference"}],
        "groupby": ["x"],
    },
    *(
        {
            "calculate": f"!isValid(datum.raw_{name}) ? null : baseline === '' ? "
            f"datum.raw_{name} : isValid(datum.reference) ? "
            f"datum.raw_{name} - datum.reference : null",
            "as": name,
        }
        for name in ("mean", "least", "greatest")
    ),
]

CLIENT_STATES = {
    ".": ("not asked", "#ffffff"),
    "c": ("counted", "#d9e6ef"),
    "k": ("round skipped", "#b8b8b8"),
    "m": ("silent", "#f0c86b"),
    "t": ("trimmed", "#e07b39"),
    "r": ("rejected", "#3b0f2e"),
}
"""Letter of a client's state in a round → name and colour: the darker, the worse."""


def line_charts(
    panels: Mapping[str, Mapping[str, Curve]], y: str, share: bool, x: str = "Round"
) -> Iterator[tuple[str, Spec]]:
    """Return an interactive chart for each panel, with the same styles in all.

    A click in the legend toggles a line, a drag or the wheel zooms, a double click
    resets. The signal `baseline` holds the label whose mean is subtracted from all
    lines; empty for none.

    Parameters
    ----------
    panels : Mapping[str, Mapping[str, Curve]]
        Title of the panel → label of the line → curve.
    y : str
        Title of the vertical axis.
    share : bool
        Whether values are shares, shown in per cent.
    x : str (default: "Round")
        Title of the horizontal axis.
    """
    labels = _labels(panels)
    for title, curves in panels.items():
        spec = _panel(curves, labels, _axis(panels, y, share), x, share, raw="raw_")
        spec |= {"$schema": _SCHEMA, "width": "container", "height": _HEIGHT}
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
        spec["params"] = [{"name": "baseline", "value": ""}]
        spec["transform"] = _DIFFERENCE
        spec["layer"][0]["params"] = _SELECTIONS
        for layer in spec["layer"]:
            opacity = layer["mark"].get("opacity", 1)
            layer["encoding"]["opacity"] = {
                "condition": {"param": "shown", "value": opacity},
                "value": 0.04 if opacity else 0,
            }
        yield title, spec


def line_chart(
    panels: Mapping[str, Mapping[str, Curve]],
    y: str,
    share: bool,
    x: str = "Round",
    title: str = "",
    log_x: bool = False,
) -> Spec:
    """Return one figure with all panels side by side, for papers."""
    labels, axis = _labels(panels), _axis(panels, y, share)
    charts = [
        {
            **_panel(curves, labels, axis, x, share, log_x),
            "title": {"text": text[: _LETTERS * 2], "anchor": "start", "fontSize": 12},
            "width": _WIDTH,
            "height": _HEIGHT,
        }
        for text, curves in panels.items()
    ]
    return _figure(charts, title) | {
        "columns": 2,
        "config": {"legend": {"orient": "bottom", "columns": 4, "labelLimit": 320}},
    }


def score_chart(
    scores: Mapping[int, Mapping[str, Mapping[str, float | None]]], n: int, metric: str
) -> Spec:
    """Return a figure of scores: rules by attack, for each number of malicious clients.

    Each rule's worst score has a frame and stands once more in the last column.
    """
    charts = []
    for f, by_rule in scores.items():
        attacks, share = attacks_of(by_rule), is_share(by_rule)
        factor = 100 if share else 1
        values = []
        for rule, row in by_rule.items():
            low = min((v for v in row.values() if v is not None), default=None)
            columns = {**{attack: row.get(attack) for attack in attacks}, "worst": low}
            for column, value in columns.items():
                known = value is not None and math.isfinite(value)
                values.append(
                    {
                        "rule": rule,
                        "attack": column,
                        "text": format_score(value, share),
                        "value": factor * (value or 0.0) if known else None,
                        "worst": column in attacks and value == low is not None,
                    }
                )
        charts.append(
            _score_panel(
                f"{f} of {n} clients malicious", values, attacks, by_rule, metric, share
            )
        )
    return _figure(charts, "") | {
        "columns": 1,
        "resolve": {"scale": {"color": "independent"}},
    }


def client_chart(
    panels: Mapping[str, tuple[Sequence[int], Mapping[str, str], Mapping[str, int]]],
) -> Spec:
    """Return a figure of the clients' states by round.

    Parameters
    ----------
    panels : Mapping[str, tuple]
        Title → numbers of the rounds; label of each client → its states, a letter for
        each round; label of a client → the round in which it was first suspected.
    """
    used = {s for _, rows, _ in panels.values() for row in rows.values() for s in row}
    states = [CLIENT_STATES[letter] for letter in CLIENT_STATES if letter in used]
    colour = {
        "field": "state",
        "type": "nominal",
        "title": None,
        "scale": {
            "domain": [name for name, _ in states],
            "range": [shade for _, shade in states],
        },
        "legend": {
            "orient": "bottom",
            "symbolType": "square",
            "symbolStrokeColor": "#888",
        },
    }
    charts = []
    for title, (rounds, rows, suspected) in panels.items():
        cells = [
            {"node": node, "round": number, "state": CLIENT_STATES[letter][0]}
            for node, row in rows.items()
            for number, letter in zip(rounds, row, strict=True)
        ]
        marks = [{"node": node, "round": number} for node, number in suspected.items()]
        x = {
            "field": "round",
            "type": "ordinal",
            "title": "Round",
            "axis": {"labelOverlap": True, "labelAngle": 0, "ticks": False},
        }
        node_axis = {
            "field": "node",
            "type": "nominal",
            "sort": None,
            "scale": {"domain": list(rows)},
            "title": "Client",
        }
        charts.append(
            {
                "title": {
                    "text": title[: 2 * _LETTERS],
                    "anchor": "start",
                    "fontSize": 12,
                },
                "width": _WIDTH,
                "height": {"step": 15},
                "layer": [
                    {
                        "data": {"values": cells},
                        "mark": {"type": "rect", "stroke": "white", "strokeWidth": 0.5},
                        "encoding": {"x": x, "y": node_axis, "color": colour},
                    },
                    {
                        "data": {"values": marks},
                        "mark": {
                            "type": "point",
                            "shape": "triangle-up",
                            "filled": True,
                            "color": "black",
                            "size": 45,
                            "stroke": "white",
                        },
                        "encoding": {"x": x, "y": node_axis},
                    },
                ],
            }
        )
    caption = "▲ first suspected · ★ malicious"
    return _figure(charts, "") | {
        "columns": 2,
        "title": {"text": [], "subtitle": caption, "anchor": "start"},
    }


def _figure(charts: Sequence[Spec], title: str) -> Spec:
    spec: Spec = {"$schema": _SCHEMA, "background": "white", "concat": list(charts)}
    if title:
        spec["title"] = {"text": title, "anchor": "start"}
    return spec


def _labels(panels: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    return list(dict.fromkeys(label for curves in panels.values() for label in curves))


def _axis(panels: Mapping[str, Mapping[str, Curve]], y: str, share: bool) -> Spec:
    """Return the encoding of the vertical axis that all panels share."""
    values = [
        value
        for curves in panels.values()
        for curve in curves.values()
        for value in (*curve.least, *curve.greatest)
        if value is not None
    ]
    low, high = min(values, default=0.0), max(values, default=1.0)
    axis: Spec = {"type": "quantitative", "title": y}
    if not share and low > 0 and high > _WIDE_RANGE * low:
        axis["scale"] = {"type": "symlog", "constant": low}
        axis["axis"] = {
            "labelExpr": "format(datum.value, '~g')",  # a format alone is rounded
            "values": _powers(low, high),
        }
        return axis
    return axis | {"scale": {"zero": True}}


def _powers(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(-(-(last - first) // 8), 1)
    return [10.0**power for power in range(first, last + 1, step)]


def _panel(
    curves: Mapping[str, Curve],
    labels: Sequence[str],
    y: Spec,
    x: str,
    share: bool,
    log_x: bool = False,
    raw: str = "",
) -> Spec:
    factor = 100 if share else 1
    names = [f"{raw}{name}" for name in ("mean", "least", "greatest")]
    values = [
        {"label": label, "x": number}
        | {
            name: None if v is None else factor * v
            for name, v in zip(names, three, strict=True)
        }
        for label, curve in curves.items()
        for number, *three in zip(
            curve.rounds, curve.mean, curve.least, curve.greatest, strict=True
        )
    ]
    styles = line_styles(labels)
    by_label: Spec = {"field": "label", "type": "nominal", "title": None}
    colours = {"domain": labels, "range": [styles[i].colour for i in labels]}
    dashes = {"domain": labels, "range": [list(styles[i].dash) for i in labels]}
    colour = {**by_label, "scale": colours, "legend": _LEGEND}
    dash = {**by_label, "scale": dashes, "legend": _LEGEND}
    across: Spec = {"field": "x", "type": "quantitative", "title": x}
    across |= {"scale": {"nice": False}, "axis": {"tickMinStep": 1}}
    if log_x:
        across["scale"] = {"type": "symlog", "constant": 10}
    few = all(len(curve.rounds) < 2 for curve in curves.values())  # dots, not lines
    mean = {"x": across, "y": {**y, "field": "mean"}, "color": colour}
    return {
        "data": {"values": values},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15, "clip": True},
                "encoding": {
                    **mean,
                    "y": {**y, "field": "least"},
                    "y2": {"field": "greatest"},
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 2, "clip": True},
                "encoding": {**mean, "strokeDash": dash},
            },
            {
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 60,
                    "opacity": 1 if few else 0,
                    "clip": True,
                },
                "encoding": {
                    **mean,
                    "tooltip": [
                        {**by_label, "title": "Line"},
                        {"field": "x", "type": "quantitative", "title": x},
                        *(
                            {
                                "field": name,
                                "type": "quantitative",
                                "title": name.capitalize(),
                                "format": ".4~g",
                            }
                            for name in ("mean", "least", "greatest")
                        ),
                    ],
                },
            },
        ],
    }


def _score_panel(
    title: str,
    values: Sequence[Spec],
    attacks: Sequence[str],
    rules: Mapping[str, object],
    metric: str,
    share: bool,
) -> Spec:
    scale: Spec = {"scheme": "cividis"} | ({"domain": [0, 100]} if share else {})
    known = [v["value"] for v in values if v["value"] is not None]
    middle = 50 if share else (min(known) + max(known)) / 2 if known else 0
    position = {
        "x": {
            "field": "attack",
            "type": "nominal",
            "sort": None,
            "scale": {"domain": [*attacks, "worst"]},
            "title": None,
            "axis": {"labelAngle": -35, "labelLimit": 240, "ticks": False},
        },
        "y": {
            "field": "rule",
            "type": "nominal",
            "sort": None,
            "scale": {"domain": list(rules)},
            "title": None,
            "axis": {"labelLimit": 400, "ticks": False},
        },
    }
    unit = " (%)" if share else ""
    return {
        "title": {"text": title, "anchor": "start", "fontSize": 12},
        "width": {"step": 54},
        "height": {"step": 26},
        "data": {"values": list(values)},
        "encoding": position,
        "layer": [
            {
                # The title of a colour, which is the metric's name, would be part of an
                # expression in the description of every cell.
                "mark": {"type": "rect", "invalid": None, "aria": False},
                "encoding": {
                    "color": {
                        "condition": {
                            "test": "!isValid(datum.value)",
                            "value": "#eeeeee",
                        },
                        "field": "value",
                        "type": "quantitative",
                        "title": metric + unit,
                        "scale": scale,
                    }
                },
            },
            {
                "transform": [{"filter": "datum.worst"}],
                "mark": {
                    "type": "rect",
                    "filled": False,
                    "stroke": "#d55e00",
                    "strokeWidth": 2,
                },
            },
            {
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "text": {"field": "text", "type": "nominal"},
                    "color": {
                        "condition": {
                            "test": f"isValid(datum.value) && datum.value < {middle}",
                            "value": "white",
                        },
                        "value": "black",
                    },
                },
            },
        ],
    }
