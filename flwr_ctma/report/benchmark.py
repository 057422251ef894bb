"""Results of the benchmark: figures, and tables in Markdown."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from flwr_ctma.report.colours import line_styles

__all__ = ["benchmark_table", "loss_chart", "points", "rate_cell", "share_chart"]

Spec = dict[str, Any]
Results = Sequence[Mapping[str, Any]]

_SPREAD = 3  # from the first rule to the last, in percent of the clients
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
    """Return a figure of the loss in the worst attack by the share of liars.

    Regimes that were measured with one share alone are left out.
    """
    rules = _rules(results)
    x: Spec = {
        "field": "share",
        "type": "quantitative",
        "title": "Malicious clients (%)",
    }
    x |= {"scale": {"domain": [0, 50]}}
    y: Spec = {"type": "quantitative", "title": "Points lost in the worst attack"}
    y |= {"scale": {"domain": [0, 100]}}
    colour = _colour(rules) | {"legend": {"title": None, "orient": "bottom"}}
    mean = {"x": x, "y": {**y, "field": "mean"}, "color": colour}
    shares: dict[str, set[float]] = {}
    for one in results:
        shares.setdefault(_regime(one, with_share=False), set()).add(_share(one))
    return _panels(
        [one for one in results if len(shares[_regime(one, with_share=False)]) > 1],
        "loss",
        title,
        [
            {"mark": {"type": "line", "point": True}, "encoding": mean},
            {
                "mark": {"type": "rule", "strokeWidth": 2},
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
    """Return a table in Markdown for each regime, with a row for each rule.

    The regime is the title of the first column. A time of zero was not measured.
    """
    regimes = itertools.groupby(results, _regime)
    return "\n".join(_regime_table(list(some)) for _, some in regimes)


def _regime_table(results: Results) -> str:
    titles = [
        _title(results[0]),
        "rate",
        "no attack (%)",
        "worst (%)",
        "attack",
        "points lost",
    ]
    measured = any("aggregation-seconds" in one for one in results)
    titles += ["aggregation (ms)"] * measured
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for one in results:
        cells = [f"`{one['rule']}`{_memory(one)}", rate_cell(one)]
        cells += [points(one["unattacked"]), points(one["worst"])]
        cells += [f"`{one['worst']['attack']}`", points(one["loss"])]
        if measured:
            seconds = one["aggregation-seconds"]
            cells.append(f"{1000 * seconds:.1f}" if seconds else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rate_cell(one: Mapping[str, Any]) -> str:
    """Return the learning rate, and whether it is an extreme of those that were tried.

    Examples
    --------
    >>> rate_cell({"learning-rate": 0.3, "learning-rates": [0.03, 0.1, 0.3]})
    '0.3, largest'
    """
    rate, tried = one["learning-rate"], one.get("learning-rates", [])
    words = [f"{rate:g}"]
    if len(tried) > 1 and rate in (min(tried), max(tried)):
        words.append("smallest" if rate == min(tried) else "largest")
    return ", ".join(words)


def _panels(
    results: Results,
    field: str,
    title: str,
    layers: Sequence[Spec],
    by_share: bool,
) -> Spec:
    panels: dict[str, list[Spec]] = {}
    for one in results:
        name = _regime(one, with_share=by_share)
        panels.setdefault(name, []).append(_values(one, field))
    if not by_share:
        _set_apart(panels, _rules(results))
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


def _values(one: Mapping[str, Any], field: str) -> Spec:
    mean, interval = one[field]["mean"], one[field]["interval"]
    low, high = interval or (mean, mean)
    return {
        **{"rule": _rule(one), "share": _share(one), "mean": 100 * mean},
        **{"low": 100 * low, "high": 100 * high},
    }


def _set_apart(panels: Mapping[str, Sequence[Spec]], rules: Sequence[str]) -> None:
    """Move the rules apart along the axis, so that no interval hides another."""
    for values in panels.values():
        for value in values:
            place = (rules.index(value["rule"]) + 0.5) / len(rules) - 0.5
            value["share"] += _SPREAD * place


def _share(one: Mapping[str, Any]) -> float:
    return 100 * float(one["malicious"] / one["num-nodes"])


def _rules(results: Results) -> list[str]:
    return list(dict.fromkeys(map(_rule, results)))


def _rule(one: Mapping[str, Any]) -> str:
    return f"{one['rule']}{_memory(one)}"


def _memory(one: Mapping[str, Any]) -> str:
    return f", memory {one['memory']:g}" if one["memory"] else ""


def _regime(one: Mapping[str, Any], with_share: bool = True) -> str:
    varied = ("optimizer", "local-steps", "alpha", "fraction-train")
    found = {key: one["regime"][key] for key in varied if key in one["regime"]}
    more = [f"{k} {v if isinstance(v, str) else f'{v:g}'}" for k, v in found.items()]
    partitioner = str(one["regime"].get("partitioner", "iid"))
    sorted_by_class = [partitioner] * (partitioner not in ("iid", "dirichlet"))
    words = [f"steps on the {one['steps']}", f"data {one['data']}"]
    words += [*sorted_by_class, *more]
    words += [f"{one['malicious']} of {one['num-nodes']}"] * with_share
    return ", ".join(words)


def _title(one: Mapping[str, Any]) -> str:
    upload = one.get("upload-bytes")
    return _regime(one) + (f"; upload {upload / 1000:.1f} kB" if upload else "")


def _colour(rules: Sequence[str]) -> Spec:
    styles = line_styles(rules)
    scale = {"domain": list(rules), "range": [styles[rule].colour for rule in rules]}
    return {"field": "rule", "type": "nominal", "scale": scale, "legend": None}


def points(summary: Mapping[str, Any]) -> str:
    """Return a mean and its interval, in points of accuracy.

    Examples
    --------
    >>> points({"mean": 0.003, "interval": [-0.0001, 0.007]})
    '0.3 (0.0 to 0.7)'
    """
    values = summary["mean"], *(summary["interval"] or ())
    # "z": no minus sign before 0.0.
    mean, *ends = (f"{100 * value:z.1f}" for value in values)
    return f"{mean} ({' to '.join(ends)})" if ends else mean
