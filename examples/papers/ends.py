"""Print the final accuracies of a sweep's runs as a Markdown table.

    python examples/papers/ends.py runs/p2-digits --row aggregator client-weighting \
        --column attack --only malicious-share=0.4 --last 3

Each cell is the accuracy in per cent, averaged over the last evaluations of each run:
the mean over seeds, with its 95 % bootstrap interval. With `--less ROW`, it is the
difference from that row in points, taken within each seed. `--figure FILE` draws the
same means and intervals, with a panel for each column.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr_ctma.experiments.intervals import bootstrap_interval, tail_mean
from flwr_ctma.experiments.match import metric_values
from flwr_ctma.report.colours import line_styles
from flwr_ctma.report.render import write_chart
from flwr_ctma.tracking.json_lines import read_json
from flwr_ctma.tracking.run_folder import RunFolder

Ends = dict[str, dict[str, dict[int, float]]]
"""Row → column → seed → accuracy in per cent."""

_SOLID = {"filled": True, "opacity": 1, "size": 50}


def main(options: argparse.Namespace) -> None:
    """Read the runs, group them, print the table, and draw the figure."""
    ends = _ends(options)
    if options.less and options.less not in ends:
        raise SystemExit(f"--less must be one of {list(ends)}, not {options.less!r}")
    columns = sorted({column for by_column in ends.values() for column in by_column})
    reference = ends.pop(options.less, {})
    cells = {
        row: {
            column: _less(by_column[column], reference[column])
            if options.less
            else list(by_column[column].values())
            for column in columns
        }
        for row, by_column in ends.items()
    }
    print("| " + " | ".join(["", *columns]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row, by in cells.items():
        print("| " + " | ".join([row, *map(_cell, by.values())]) + " |")
    if options.figure:
        write_chart(_chart(cells, columns), options.figure)


def _ends(options: argparse.Namespace) -> Ends:
    only = dict(pair.split("=", 1) for pair in options.only)
    ends: Ends = defaultdict(lambda: defaultdict(dict))
    for file in sorted(options.sweep.glob("*/ended.json")):
        config = read_json(file.parent / "config.json") or {}
        if any(str(config[key]) != value for key, value in only.items()):
            continue
        row, column = (
            ", ".join(str(config[key]) for key in keys)
            for keys in (options.row, options.column)
        )
        values = metric_values(RunFolder(file.parent).rounds(), "accuracy")
        ends[row][column][config["seed"]] = 100 * tail_mean(values, options.last)
    return ends


def _less(values: dict[int, float], reference: dict[int, float]) -> list[float]:
    """Return the differences for the seeds that both have."""
    return [values[seed] - reference[seed] for seed in values if seed in reference]


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    interval = bootstrap_interval(values)
    ends = f" ({interval.low:.1f} to {interval.high:.1f})" if interval else ""
    return f"{statistics.mean(values):.1f}{ends}"


def _chart(cells: dict[str, dict[str, list[float]]], columns: list[str]) -> Any:
    """Return a figure with a panel for each column, and a dot for each row."""
    styles = line_styles(list(cells))
    colours = [styles[row].colour for row in cells]
    y: dict[str, Any] = {"field": "row", "type": "nominal", "title": None, "sort": None}
    colour: dict[str, Any] = {"field": "row", "type": "nominal", "legend": None}
    colour |= {"scale": {"domain": list(cells), "range": colours}}
    x: dict[str, Any] = {"type": "quantitative", "scale": {"zero": False}}
    x |= {"title": "Test accuracy (%)"}
    dots = {"x": {**x, "field": "mean"}, "y": y, "color": colour}
    bars = {**dots, "x": {**x, "field": "low"}, "x2": {"field": "high"}}
    panels = [
        {
            "title": {"text": column, "anchor": "start"},
            **{"width": 260, "height": 24 * len(cells)},
            "data": {"values": list(_points(cells, column))},
            "layer": [
                {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": bars},
                {"mark": {"type": "point", **_SOLID}, "encoding": dots},
            ],
        }
        for column in columns
    ]
    shared = {"scale": {"x": "shared", "color": "shared"}}
    return {
        **{"background": "white", "columns": 2},
        **{"concat": panels, "resolve": shared},
    }


def _points(
    cells: dict[str, dict[str, list[float]]], column: str
) -> Iterator[dict[str, Any]]:
    for row, by_column in cells.items():
        if values := by_column[column]:
            mean, interval = statistics.mean(values), bootstrap_interval(values)
            low, high = (interval.low, interval.high) if interval else (mean, mean)
            yield {"row": row, "mean": mean, "low": low, "high": high}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--row", nargs="+", default=["attack"])
    parser.add_argument("--column", nargs="+", default=["aggregator"])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--last", type=int, default=1)
    parser.add_argument("--less", default="")
    parser.add_argument("--figure", type=Path)
    main(parser.parse_args())
