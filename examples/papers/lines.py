"""Draw accuracy over the rounds of a sweep's runs, or over virtual seconds.

    python examples/papers/lines.py runs/p2-digits p2.png --panel attack \
        --line aggregator client-weighting --only malicious-share=0.4
    python examples/papers/lines.py runs/p2-straggler time.png \
        --line asynchronous learning-rate --x virtual-seconds --goals 0.5 0.8 0.85

A panel for each value of one key, a line for each combination of others: the mean over
seeds, in a band from the least to the most. With goals it prints when each run of a
kind was first that accurate.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

from flwr_ctma.tracking.run_folder import RunFolder

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#000000",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#F0E442",
)


def main(asked: argparse.Namespace) -> None:
    """Read the runs, sort them, and draw."""
    panels: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    only = dict(pair.split("=", 1) for pair in asked.only)
    for file in sorted(asked.sweep.glob("*/config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        if not (file.parent / "ended.json").exists():
            continue
        if any(str(config[key]) != value for key, value in only.items()):
            continue
        lines = [x for x in RunFolder(file.parent).rounds() if "accuracy" in x]
        kind = ", ".join(_spelled(key, config[key]) for key in asked.line)
        panels[str(config.get(asked.panel, ""))][kind].append(lines)
    columns = min(len(panels), 2)
    figure, axes = plt.subplots(
        *(-(-len(panels) // columns), columns),
        figsize=(1 + 4.2 * columns, 0.6 + 2.6 * -(-len(panels) // columns)),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    kinds = sorted({kind for by_kind in panels.values() for kind in by_kind})
    for ax, (title, by_kind) in zip(axes.flat, panels.items(), strict=False):
        for kind, runs in sorted(by_kind.items()):
            x, y = (
                np.array([[line[key] for line in lines] for lines in runs])
                for key in (asked.x, "accuracy")
            )
            colour = COLOURS[kinds.index(kind)]
            ax.plot(x.mean(axis=0), 100 * y.mean(axis=0), color=colour, label=kind)
            ax.fill_between(
                x.mean(axis=0),
                100 * y.min(axis=0),
                100 * y.max(axis=0),
                color=colour,
                alpha=0.1,
                linewidth=0,
            )
            for goal in asked.goals:
                print(f"{title} {kind}: {goal:.0%} {_when(runs, goal, asked.x)}")
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_ylim(0, 100)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if asked.x != "round":
            ax.set_xscale("symlog", linthresh=10)
            ax.set_xlim(left=0)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel(asked.x.replace("-", " ").capitalize(), fontsize=10)
    figure.supylabel("Test accuracy (%)", fontsize=10)
    figure.savefig(asked.figure, dpi=110)
    Image.open(asked.figure).convert("RGB").quantize(256).save(asked.figure)


def _spelled(key: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{key} {value}".lower()


def _when(runs: list, goal: float, x: str) -> str:
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
