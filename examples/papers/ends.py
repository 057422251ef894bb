"""Print how the runs of a sweep ended, as a Markdown table.

    python examples/papers/ends.py runs/p2-digits --row aggregator client-weighting \
        --column attack --only malicious-share=0.4 --last 3

Accuracy in per cent, mean of the last evaluations of each run: the mean over seeds, and
their standard deviation.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from flwr_ctma.tracking.run_folder import RunFolder


def main(asked: argparse.Namespace) -> None:
    """Read the runs, sort them, and print."""
    only = dict(pair.split("=", 1) for pair in asked.only)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(asked.sweep.glob("*/ended.json")):
        config = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
        if any(str(config[key]) != value for key, value in only.items()):
            continue
        lines = [x for x in RunFolder(file.parent).rounds() if "accuracy" in x]
        row, column = (
            ", ".join(str(config[key]) for key in keys)
            for keys in (asked.row, asked.column)
        )
        last = [100 * line["accuracy"] for line in lines[-asked.last :]]
        found[row][column].append(statistics.mean(last))
    columns = sorted({column for by_column in found.values() for column in by_column})
    print("| " + " | ".join(["", *columns]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row, by_column in found.items():
        cells = [_spelled(by_column[column]) for column in columns]
        print("| " + " | ".join([row, *cells]) + " |")


def _spelled(ends: list[float]) -> str:
    if not ends:
        return ""
    spread = f" ± {statistics.stdev(ends):.1f}" if len(ends) > 1 else ""
    return f"{statistics.mean(ends):.1f}{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--row", nargs="+", default=["attack"])
    parser.add_argument("--column", nargs="+", default=["aggregator"])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--last", type=int, default=1)
    main(parser.parse_args())
