"""Draw accuracy over the rounds of a sweep's runs, or over virtual seconds.

    python examples/papers/lines.py runs/p2-digits p2.png --panel attack \
        --line aggregator client-weighting --only malicious-share=0.4
    python examples/papers/lines.py runs/p2-straggler time.png \
        --line asynchronous learning-rate --x virtual-seconds --goals 0.5 0.8 0.85

The figure has a panel for each value of one key and a line for each combination of
others: the mean over seeds, in a band from the least to the greatest. With goals, the
script prints when each run first reached that accuracy.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from flwr_ctma.experiments.curves import Curve
from flwr_ctma.report.charts import line_chart
from flwr_ctma.report.render import write_chart
from flwr_ctma.tracking.json_lines import read_json
from flwr_ctma.tracking.run_folder import RunFolder

Runs = list[list[dict[str, Any]]]


def main(options: argparse.Namespace) -> None:
    """Read the runs, group them, and draw."""
    panels: dict[str, dict[str, Runs]] = defaultdict(lambda: defaultdict(list))
    only = dict(pair.split("=", 1) for pair in options.only)
    for file in sorted(options.sweep.glob("*/ended.json")):
        config = read_json(file.parent / "config.json") or {}
        if any(str(config[key]) != value for key, value in only.items()):
            continue
        lines = [x for x in RunFolder(file.parent).rounds() if "accuracy" in x]
        label = ", ".join(_setting(key, config[key]) for key in options.line)
        panels[str(config.get(options.panel, ""))][label].append(lines)
    for title, by_label in panels.items():
        for label, runs in sorted(by_label.items()):
            for goal in options.goals:
                times = _first_times(runs, goal, options.x)
                print(f"{title} {label}: {goal:.0%} {times}")
    curves = {
        title: {label: _curve(runs, options.x) for label, runs in sorted(some.items())}
        for title, some in panels.items()
    }
    x = options.x.replace("-", " ").capitalize()
    log_x = options.x != "round"
    chart = line_chart(curves, "Test accuracy (%)", share=True, x=x, log_x=log_x)
    write_chart(chart, options.figure)


def _curve(runs: Runs, x: str) -> Curve:
    evaluations = list(zip(*runs, strict=True))
    positions = [statistics.fmean(line[x] for line in lines) for lines in evaluations]
    values = [[line["accuracy"] for line in lines] for lines in evaluations]
    return Curve.over_runs(positions, values)  # type: ignore[arg-type]


def _setting(key: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{key} {value}".lower()


def _first_times(runs: Runs, goal: float, x: str) -> str:
    times = [
        next((line[x] for line in lines if line["accuracy"] >= goal), None)
        for lines in runs
    ]
    return ", ".join("never" if time is None else f"{time:.0f}" for time in times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--panel", default="")
    parser.add_argument("--line", nargs="+", default=["aggregator"])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--x", default="round")
    parser.add_argument("--goals", nargs="*", type=float, default=[])
    main(parser.parse_args())
