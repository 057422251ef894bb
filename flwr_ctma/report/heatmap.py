"""The outcome of a tournament: a table by number of malicious clients, and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flwr_ctma.experiments.match import Match, MatchResult
from flwr_ctma.experiments.tournament import Scores, worst

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["draw_scores", "ledger_table", "score_table"]


def score_table(
    f: int, n: int, by_rule: Mapping[str, Mapping[str, float | None]]
) -> Table:
    """Show rules by attack in per cent, the worst case in red, the best rule first."""
    table = Table(
        title=f"{f} of {n} clients malicious", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("rule", no_wrap=True)
    attacks = _attacks(by_rule)
    for attack in [*attacks, "worst"]:
        table.add_column(attack, justify="right", overflow="fold")
    for rule, by_attack in by_rule.items():
        low = worst(by_attack)
        cells = [
            f"[bold red]{_cell(value)}[/]" if value == low else _cell(value)
            for value in (by_attack[attack] for attack in attacks)
        ]
        table.add_row(rule, *cells, f"[bold]{_cell(low)}[/]")
    return table


def ledger_table(
    f: int, n: int, outcomes: Mapping[Match, MatchResult], attacks: Sequence[str]
) -> Table | None:
    """Show by attack and rule how well the ledger told who attacks.

    A cell holds the area under the ROC curve, then how many of the malicious and how
    many of the honest were suspects in the end, all of them means over seeds. None if
    no rule keeps a ledger.
    """
    told: dict[tuple[str, str], list[MatchResult]] = {}
    for match, outcome in outcomes.items():
        if match.num_malicious == f and outcome.alarms is not None:
            told.setdefault((match.attack, match.aggregator), []).append(outcome)
    if not told:
        return None
    table = Table(
        title=f"Who attacks, {f} of {n}: AUC of suspicion; suspects, true and false",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("attack", no_wrap=True)
    rules = list(dict.fromkeys(rule for _, rule in told))
    for rule in rules:
        table.add_column(rule, justify="right")
    for attack in attacks:
        row = [told.get((attack, rule), []) for rule in rules]
        table.add_row(attack, *(_told(each) for each in row))
    return table


def _told(outcomes: Sequence[MatchResult]) -> str:
    """Write a cell of the ledger's table.

    Examples
    --------
    >>> _told([MatchResult(0.9, 1.0, auc=1.0, found=5, alarms=0)])
    '1.00 5+0'
    """
    if not outcomes:
        return "–"
    aucs = [outcome.auc for outcome in outcomes if outcome.auc is not None]
    found, alarms = (
        f"{fmean(value or 0 for value in values):.3g}"
        for values in ((o.found for o in outcomes), (o.alarms for o in outcomes))
    )
    return f"{fmean(aucs):.2f} {found}+{alarms}" if aucs else f"{alarms} false"


def draw_scores(scores: Scores, n: int, metric: str, path: Path) -> None:
    """Draw a panel for each number of malicious clients: rules by attacks.

    Rules come with the best worst case on top; each one's worst case has a frame, and
    stands once more in the last column.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = [label for by_rule in scores.values() for label in by_rule]
    num_columns = len(_attacks(next(iter(scores.values())))) + 1
    width = 1.4 + 0.075 * max(map(len, labels)) + 0.62 * num_columns
    heights = [1.5 + 0.34 * len(by_rule) for by_rule in scores.values()]
    figure, axes = plt.subplots(
        len(scores),
        1,
        figsize=(width, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for ax, (f, by_rule) in zip(axes[:, 0], scores.items(), strict=True):
        image = _draw_panel(ax, by_rule)
        ax.set_title(f"{f} of {n} clients malicious", loc="left", fontsize=10)
    label, slender = f"{metric} (%)", 20 * len(scores)
    figure.colorbar(image, ax=axes[:, 0], label=label, fraction=0.03, aspect=slender)
    for suffix in {path.suffix, ".svg"}:
        figure.savefig(path.with_suffix(suffix), dpi=100)
    plt.close(figure)


def _draw_panel(
    ax: "Axes", by_rule: Mapping[str, Mapping[str, float | None]]
) -> "AxesImage":
    from matplotlib.patches import Rectangle

    attacks = _attacks(by_rule)
    rows = [
        [by[attack] for attack in attacks] + [max(worst(by), -1.0)]
        for by in by_rule.values()
    ]
    grid = [[float("nan") if v is None else 100 * v for v in row] for row in rows]
    image = ax.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            colour = "white" if value is not None and value < 0.55 else "black"
            ax.text(
                j, i, _cell(value), ha="center", va="center", color=colour, fontsize=8
            )
        played = [value for value in row[:-1] if value is not None]
        if played:
            corner = row.index(min(played)) - 0.48, i - 0.46
            frame = Rectangle(
                corner, 0.96, 0.92, fill=False, ec="#D55E00", lw=1.8, zorder=3
            )
            ax.add_patch(frame)
    ax.set_yticks(range(len(by_rule)), list(by_rule), fontsize=9)
    ax.set_xticks(
        range(len(attacks) + 1),
        [*attacks, "worst"],
        fontsize=9,
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    ax.axvline(len(attacks) - 0.5, color="white", linewidth=4)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _attacks(by_rule: Mapping[str, Mapping[str, object]]) -> list[str]:
    return list(next(iter(by_rule.values())))


def _cell(value: float | None) -> str:
    return "–" if value is None or value < 0 else f"{100 * value:.1f}"
