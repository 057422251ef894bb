"""Figures of accuracy by round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

from flwr_ctma.experiments.comparison import Curve, Scenario

__all__ = ["draw_accuracy"]

# Okabe and Ito's colours, told apart with any colour vision; the first is for what the
# others are compared with.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("--", "-", "-.", ":")


def draw_accuracy(
    by_scenario: Mapping[Scenario, Sequence[Curve]], title: str, path: Path
) -> None:
    """Draw accuracy by round, a panel for each scenario, a labelled line for each rule.

    Lines are means over seeds, bands go from the least to the greatest.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(len(by_scenario), 2)
    rows = -(-len(by_scenario) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(1.2 + 4.6 * columns, 0.8 + 3.2 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    for ax in list(axes.flat)[len(by_scenario) :]:
        ax.set_visible(False)
    for ax, (scenario, by_rule) in zip(axes.flat, by_scenario.items(), strict=False):
        _draw(ax, scenario, by_rule)
    for ax in axes[:, 0]:
        ax.set_ylabel("Test accuracy (%)")
    for ax in axes[-1]:
        ax.set_xlabel("Round")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(ax: "Axes", scenario: Scenario, by_rule: Sequence[Curve]) -> None:
    ends = []
    for i, curve in enumerate(by_rule):
        colour = _COLOURS[i % len(_COLOURS)]
        percent = [[100 * value for value in values] for values in curve.accuracies]
        means = [100 * mean for mean in curve.means]
        ax.plot(curve.rounds, means, _DASHES[i % len(_DASHES)], color=colour, lw=2)
        low, high = list(map(min, percent)), list(map(max, percent))
        ax.fill_between(curve.rounds, low, high, color=colour, alpha=0.15, lw=0)
        ends.append((means[-1], curve.rounds[-1], curve.aggregator, colour))
    ends.sort(reverse=True)
    heights = _apart([mean for mean, *_ in ends])
    for height, (_, end, label, colour) in zip(heights, ends, strict=True):
        ax.annotate(
            label,
            (end, height),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )
    ax.set_title(str(scenario), loc="left", fontsize=10)
    ax.set_ylim(0, 100)
    ax.set_xlim(0, max(end for _, end, _, _ in ends))
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def _apart(heights: Sequence[float], gap: float = 6.0) -> list[float]:
    """Move labels apart, from the top down, each as near to its line as there is room.

    Examples
    --------
    >>> _apart([97.0, 96.0, 55.0])
    [97.0, 91.0, 55.0]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(min(height, placed[-1] - gap) if placed else height)
    return placed
