"""The figures of the report as files, for papers."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from flwr_ctma.experiments.comparison import Curve
from flwr_ctma.experiments.comparison import Scenario as Panel
from flwr_ctma.report.accuracy_figure import draw_accuracy
from flwr_ctma.report.client_figure import draw_rolls
from flwr_ctma.report.client_table import rows_of
from flwr_ctma.report.groups import Group, scenarios, spelled, varying
from flwr_ctma.report.heatmap import draw_scores
from flwr_ctma.report.runs import Run, TournamentResult

__all__ = ["write_figures"]

_PANELS = 8  # runs of which one figure shows the clients


def write_figures(
    runs: Sequence[Run], cups: Sequence[TournamentResult], page: Path
) -> None:
    """Write figures beside the page.

    Accuracy by round, what every client did, and a heat map of each tournament.
    """
    panels = {}
    for scenario in scenarios(runs):
        curves = [_curve(group) for group in scenario.groups]
        if measured := [curve for curve in curves if curve.rounds]:
            panels[scenario.title] = measured
    if panels:
        path = page.with_stem(f"{page.stem}-accuracy")
        draw_accuracy(cast(Mapping[Panel, Sequence[Curve]], panels), "", path)
    if told := dict(itertools.islice(_told(runs), _PANELS)):
        draw_rolls(told, page.with_stem(f"{page.stem}-clients"))
    for i, cup in enumerate(cup for cup in cups if cup.scores):
        path = page.with_stem(f"{page.stem}-tournament{i + 1 if i else ''}")
        draw_scores(cup.scores, cup.num_nodes, cup.metric, path)


def _told(runs: Sequence[Run]) -> Iterator[tuple[str, Run]]:
    """Name the runs in which some reply did not count."""
    seeds = {repr(run.config.get("seed")) for run in runs}
    keys = [*varying(runs), *(["seed"] if len(seeds) > 1 else [])]
    for run in runs:
        if any(set(row) & set("trm") for row in rows_of(run)[1].values()):
            said = [spelled(key, run.config[key]) for key in keys if key in run.config]
            yield ", ".join(said) or run.path.name, run


def _curve(group: Group) -> Curve:
    rounds = [n for n in group.spread("accuracy").rounds if group.at("accuracy", n)]
    values = [group.at("accuracy", number) for number in rounds]
    return Curve(group.label, rounds, values, 0.0)
