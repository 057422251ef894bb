"""Print the final accuracies of a sweep's runs as a Markdown table.

    python examples/papers/ends.py runs/p2-digits --row aggregator client-weighting \
        --column attack --only malicious-share=0.4 --last 3

Each cell is the accuracy in per cent, averaged over the last evaluations of each run:
mean over seeds ± standard deviation.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from flwr_ctma.experiments.intervals import tail_mean
from flwr_ctma.experiments.match import metric_values
from flwr_ctma.tracking.json_lines import read_json
from flwr_ctma.tracking.run_folder import RunFolder


def main(options: argparse.Namespace) -> None:
    """Read the runs, group them, and print the table."""
    only = dict(pair.split("=", 1) for pair in options.only)
    ends: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(options.sweep.glob("*/ended.json")):
        config = read_json(file.parent / "config.json") or {}
        if any(str(config[key]) != value for key, value in only.items()):
            continue
        row, column = (
            ", ".join(str(config[key]) for key in keys)
            for keys in (options.row, options.column)
        )
        values = metric_values(RunFolder(file.parent).rounds(), "accuracy")
        ends[row][column].append(100 * tail_mean(values, options.last))
    columns = sorted({column for by_column in ends.values() for column in by_column})
    print("| " + " | ".join(["", *columns]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row, by_column in ends.items():
        cells = [_cell(by_column[column]) for column in columns]
        print("| " + " | ".join([row, *cells]) + " |")


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--row", nargs="+", default=["attack"])
    parser.add_argument("--column", nargs="+", default=["aggregator"])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--last", type=int, default=1)
    main(parser.parse_args())
