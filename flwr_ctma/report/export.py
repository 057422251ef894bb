"""The figures of the report as files, for papers."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from flwr_ctma.report.charts import client_chart, line_chart, score_chart
from flwr_ctma.report.client_table import client_states, suspected_since
from flwr_ctma.report.groups import group_runs, run_label
from flwr_ctma.report.page import accuracy_panels
from flwr_ctma.report.render import write_chart
from flwr_ctma.report.runs import RecordedRun, RecordedTournament

__all__ = ["write_figures"]

_MAX_PANELS = 8  # runs whose clients one figure shows


def write_figures(
    runs: Sequence[RecordedRun], tournaments: Sequence[RecordedTournament], page: Path
) -> None:
    """Write the figures beside the page.

    Accuracy by round, the states of the clients, and the scores of each tournament. The
    suffix of `page` is the format.
    """
    if panels := accuracy_panels(group_runs(runs)):
        spec = line_chart(panels, "Accuracy (%)", share=True)
        write_chart(spec, page.with_stem(f"{page.stem}-accuracy"))
    if clients := dict(itertools.islice(_client_panels(runs), _MAX_PANELS)):
        write_chart(client_chart(clients), page.with_stem(f"{page.stem}-clients"))
    for i, one in enumerate(one for one in tournaments if one.scores):
        path = page.with_stem(f"{page.stem}-tournament{i + 1 if i else ''}")
        write_chart(score_chart(one.scores, one.num_nodes, one.metric), path)


def _client_panels(
    runs: Sequence[RecordedRun],
) -> Iterator[tuple[str, tuple[list[int], dict[str, str], dict[str, int]]]]:
    """Return the clients of every run in which some reply did not count."""
    for run in runs:
        rounds, rows = client_states(run)
        if any(set(row) & set("trm") for row in rows.values()):
            label = {
                node: f"{node} ★" if node in run.malicious else str(node)
                for node in rows
            }
            suspected = {
                label[node]: number
                for node, number in suspected_since(run).items()
                if node in label
            }
            states = {label[node]: row for node, row in rows.items()}
            yield run_label(run, runs), (rounds, states, suspected)
