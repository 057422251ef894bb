"""The runs of a sweep: their folders, a table of their rounds, and their scores."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr_ctma.experiments.app import num_nodes_for
from flwr_ctma.experiments.csv_table import write_csv
from flwr_ctma.experiments.estimate import num_rounds_of
from flwr_ctma.experiments.intervals import tail_mean
from flwr_ctma.experiments.match import Match, MatchResult, metric_values
from flwr_ctma.experiments.scores import Scores, mean_scores
from flwr_ctma.tracking.json_lines import read_json, read_json_lines, write_json

__all__ = [
    "FinishedRun",
    "PlannedRun",
    "final_scores",
    "mark_finished",
    "match_results",
    "read_finished",
    "write_rounds",
]

_MATCH_KEYS = ("attack", "seed", "num-malicious-nodes")
_LONGEST_NAME = 200


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Parameters
    ----------
    config : Mapping[str, Any]
        The whole run-config, without `output`.
    point : Mapping[str, Any]
        The point on the grid: values of the keys that the sweep varies.
    """

    config: Mapping[str, Any]
    point: Mapping[str, Any]

    @cached_property
    def name(self) -> str:
        """Name of the run's folder: the point, and a digest of the configuration.

        Examples
        --------
        >>> point = {"aggregator": "ctma(gm)", "seed": 1}
        >>> PlannedRun({"seed": 1, "lr": 0.1}, point).name
        'ctma-gm_1_2ccbe2'
        """
        words = [
            re.sub(r"[^\w.=]+", "-", str(value)).strip("-")
            for value in self.point.values()
        ]
        text = json.dumps(dict(self.config), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        return "_".join([*words, digest])[-_LONGEST_NAME:]

    @property
    def num_rounds(self) -> int:
        """Number of rounds; 1 if the app does not say."""
        return num_rounds_of(self.config) or 1

    @property
    def num_client_rounds(self) -> int:
        """Number of rounds times number of clients; the time grows with it."""
        return self.num_rounds * num_nodes_for(self.config)


@dataclass(frozen=True)
class FinishedRun:
    """A run of a sweep that has ended.

    Attributes
    ----------
    run : PlannedRun
    lines : sequence of dict
        All its rounds.
    seconds : float
        Duration of the run.
    commit : str
        Git commit of the app, with `+` for uncommitted changes; empty if unknown.
    error : str
        Why the run failed; empty if it did not.
    """

    run: PlannedRun
    lines: Sequence[Mapping[str, Any]]
    seconds: float = 0.0
    commit: str = ""
    error: str = ""

    def value(self, metric: str = "accuracy", last: int = 1) -> float | None:
        """Return the mean of a metric over the last evaluations.

        None if the run failed or does not report the metric; NaN if it diverged.
        """
        if self.error:
            return None
        try:
            return tail_mean(metric_values(self.lines, metric), last)
        except ValueError:
            return None


def mark_finished(folder: Path, seconds: float, commit: str) -> None:
    """Mark the run in a folder as finished: it is not run again."""
    write_json(folder / "ended.json", {"seconds": seconds, "commit": commit})


def read_finished(run: PlannedRun, folder: Path) -> FinishedRun | None:
    """Read a finished run; None if it has not finished or a file is damaged."""
    ending = read_json(folder / "ended.json")
    if ending is None:
        return None
    try:
        lines = read_json_lines(folder / "rounds.jsonl")
        seconds, commit = float(ending["seconds"]), str(ending["commit"])
    except (LookupError, TypeError, ValueError):
        return None
    rounds = [line for line in lines if line is not None]
    return FinishedRun(run, rounds, seconds, commit) if rounds == lines else None


def write_rounds(
    path: Path, finished: Iterable[FinishedRun], metric: str = "accuracy"
) -> None:
    """Write a table with one row for each evaluated round of each run."""
    write_csv(
        path,
        [
            {
                **one.run.point,
                "seed": one.run.config.get("seed"),
                "commit": one.commit,
                **{key: v for key, v in line.items() if not isinstance(v, list)},
            }
            for one in finished
            for line in one.lines
            if metric in line or f"clients-{metric}" in line
        ],
    )


def match_results(
    finished: Sequence[FinishedRun], metric: str = "accuracy", last: int = 1
) -> dict[Match, MatchResult]:
    """Return the runs as matches: rule, attack, malicious clients, seed.

    Other keys that the sweep varies are part of the rule's name.
    """
    varied = {
        key
        for key in {key for one in finished for key in one.run.point}
        if key not in (*_MATCH_KEYS, "aggregator")
        and len({str(one.run.point.get(key)) for one in finished}) > 1
    }
    return {
        _match(one.run, sorted(varied)): _result(one, metric, last) for one in finished
    }


def final_scores(
    finished: Sequence[FinishedRun], metric: str = "accuracy", last: int = 1
) -> Scores:
    """Average the last values over seeds; see `Scores`."""
    scores = mean_scores(match_results(finished, metric, last))
    attacks = dict.fromkeys(
        attack for rules in scores.values() for row in rules.values() for attack in row
    )
    return {
        f: {rule: {a: row.get(a) for a in attacks} for rule, row in by_rule.items()}
        for f, by_rule in scores.items()
    }


def _match(run: PlannedRun, varied: Iterable[str]) -> Match:
    words = [str(run.config["aggregator"])] if "aggregator" in run.config else []
    words += [f"{key}={run.point.get(key)}" for key in varied]
    return Match(
        " ".join(words) or "the app",
        str(run.config.get("attack", "none")),
        int(run.config.get("num-malicious-nodes", 0)),
        int(run.config.get("seed", 0)),
    )


def _result(one: FinishedRun, metric: str, last: int) -> MatchResult:
    if one.error:
        return MatchResult(None, one.seconds, "crashed", one.error)
    value = one.value(metric, last)
    if value is None:
        reason = f"The run reports no `{metric}`."
        return MatchResult(None, one.seconds, "crashed", reason)
    if math.isnan(value):
        reason = f"`{metric}` is not finite."
        return MatchResult(None, one.seconds, "diverged", reason)
    return MatchResult(value, one.seconds)
