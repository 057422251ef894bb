"""What every client did, as a figure: clients by rounds."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

from flwr_ctma.report.client_table import rows_of, suspected_since
from flwr_ctma.report.runs import Run

__all__ = ["draw_rolls"]

# Told apart with any colour vision, and in grey: the darker, the worse.
_COLOURS = {
    ".": ("#FFFFFF", "not asked"),
    "c": ("#D9E6EF", "counted"),
    "k": ("#B8B8B8", "round skipped"),
    "m": ("#F0C86B", "silent"),
    "t": ("#E07B39", "trimmed"),
    "r": ("#3B0F2E", "rejected"),
}
_LETTERS = 62  # of a title, in a line


def draw_rolls(runs: Mapping[str, Run], path: Path) -> None:
    """Draw a panel for each run, by title; those who stood out most come first.

    A triangle is where a node was suspected first; malicious nodes, where they are
    known, have a bold label with a star.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    columns = min(len(runs), 2)
    lines = -(-len(runs) // columns)
    nodes = max(len(rows_of(run)[1]) for run in runs.values())
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(1 + 4.4 * columns, 0.9 + (0.8 + 0.17 * nodes) * lines),
        squeeze=False,
        layout="constrained",
    )
    for ax in list(axes.flat)[len(runs) :]:
        ax.set_visible(False)
    seen: set[str] = set()
    for ax, (title, run) in zip(axes.flat, runs.items(), strict=False):
        seen |= _draw(ax, run)
        ax.set_title(fill(title, _LETTERS), loc="left", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("Round")
    handles = [
        Patch(facecolor=colour, edgecolor="#888888", label=name)
        for letter, (colour, name) in _COLOURS.items()
        if letter in seen
    ]
    mark = Line2D([], [], color="black", marker="^", ls="", label="suspected first")
    figure.legend(
        handles=[*handles, mark],
        loc="outside lower center",
        ncols=len(handles) + 1,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw(ax: "Axes", run: Run) -> set[str]:
    """Draw a run; give the letters that are in it."""
    from matplotlib.colors import ListedColormap

    rounds, rows = rows_of(run)
    suspected = suspected_since(run)
    letters = list(_COLOURS)
    grid = [[letters.index(letter) for letter in row] for row in rows.values()]
    colours = ListedColormap([colour for colour, _ in _COLOURS.values()])
    edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(rows) - 0.5, -0.5)
    ax.imshow(
        grid,
        cmap=colours,
        vmin=-0.5,
        vmax=len(letters) - 0.5,
        aspect="auto",
        interpolation="nearest",
        extent=edges,
    )
    for i, node in enumerate(rows):
        if node in suspected:
            ax.plot(suspected[node], i, "^", color="black", ms=4.5, mec="white")
        if i:
            ax.axhline(i - 0.5, color="white", lw=1.5)
    labels = [f"{node} ★" if node in run.malicious else str(node) for node in rows]
    ax.set_yticks(range(len(rows)), labels)
    for label, node in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if node in run.malicious else "normal")
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    return {letter for row in rows.values() for letter in row}
