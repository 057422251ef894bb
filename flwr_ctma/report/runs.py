"""Read run folders and tournaments."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.match import Match, MatchResult
from flwr_ctma.experiments.scores import Scores, mean_scores
from flwr_ctma.experiments.tournament import read_matches
from flwr_ctma.tracking.json_lines import read_json, read_json_lines

__all__ = ["RecordedRun", "RecordedTournament", "find_runs", "finite"]

Line = Mapping[str, Any]

# Keys of lists of nodes. An app may have metrics with these names, which are left out.
_NODES = ("asked", "missing", "rejected", "trimmed", "suspected")
_PATTERNS = {"accuracy": r"(\b|_)acc(uracy)?(\b|_)", "loss": r"loss(\b|_)"}


@dataclass(frozen=True)
class RecordedRun:
    """One run, read from its folder.

    Attributes
    ----------
    path : Path
        The folder.
    config : Mapping[str, Any]
        The run-config.
    lines : Sequence[Mapping[str, Any]]
        A line for each round, in order.
    environment : Mapping[str, Any]
        Versions of the packages, if they were recorded.
    """

    path: Path
    config: Mapping[str, Any]
    lines: Sequence[Line]
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds; 0 is the initial model."""
        return [line["round"] for line in self.lines]

    @property
    def planned_rounds(self) -> int | None:
        """Number of rounds in the configuration."""
        planned = self.config.get("num-server-rounds")
        return planned if isinstance(planned, int) else None

    def key(self, metric: str) -> str | None:
        """Return the name of a metric: as the server reports it, or else the clients.

        Examples
        --------
        >>> line = {"round": 1, "clients-eval_acc": 0.5}
        >>> RecordedRun(Path(), {}, [line]).key("accuracy")
        'clients-eval_acc'
        """
        names = list(dict.fromkeys(name for line in self.lines for name in line))
        exact = [name for name in (metric, f"clients-{metric}") if name in names]
        similar = [name for name in names if re.search(_PATTERNS[metric], name)]
        similar.sort(key=lambda name: not name.startswith("clients-"))
        return next(iter([*exact, *similar]), None)

    def measured(self, metric: str) -> set[int]:
        """Return the rounds with a value of a metric, finite or not."""
        name = self.key(metric)
        return {line["round"] for line in self.lines if name in line}

    def values(self, name: str | None) -> list[float | None]:
        """Return the values of a metric by round; None without a finite number."""
        return [finite(line.get(name)) if name else None for line in self.lines]

    @cached_property
    def malicious(self) -> range:
        """Nodes that a simulation knows to be malicious: the first partitions."""
        known = any("malicious-kept" in line for line in self.lines)
        count = self.config.get("num-malicious-nodes")
        attacked = known and self.config.get("attack") != "none"
        return range(count if attacked and isinstance(count, int) else 0)

    @property
    def files(self) -> list[Path]:
        """Logs and records of the run that exist, the nearest log first."""
        logs = [folder / "log.txt" for folder in (self.path, self.path.parent)]
        found = [log for log in logs if log.exists()][:1]
        names = ("rounds.jsonl", "config.json")
        return found + [self.path / n for n in names if (self.path / n).exists()]


@dataclass(frozen=True)
class RecordedTournament:
    """A tournament, read from its folder.

    Attributes
    ----------
    path : Path
        The folder.
    num_nodes : int
    metric : str
    results : Mapping[Match, MatchResult]
    """

    path: Path
    num_nodes: int
    metric: str
    results: Mapping[Match, MatchResult]

    @cached_property
    def scores(self) -> Scores:
        """Scores of rules by attack."""
        return mean_scores(self.results)


def find_runs(path: Path) -> Iterator[RecordedRun | RecordedTournament]:
    """Read all runs and tournaments in a folder and in the folders below.

    Raises
    ------
    ValueError
        If there are none, or if a file holds something else.
    """
    folders = [file.parent for file in path.rglob("rounds.jsonl")]
    yield from map(_read_run, sorted(folders, key=_position))
    tournaments = sorted(path.rglob("matches.jsonl"))
    yield from map(_read_tournament, tournaments)
    if not folders and not tournaments:
        raise parameter_error(
            "run",
            "a folder with `rounds.jsonl` or `matches.jsonl` in it or below",
            str(path),
            "`flwr-ctma compare`, `sweep` and `tournament` write such folders; in your "
            "own app, `Observed(strategy, RunFolder(path).append)` does.",
        )


def _position(folder: Path) -> tuple[Path, int, Path]:
    """Order runs as they were planned, where the plan is known."""
    runs = _config(folder.parent).get("runs")
    plan = [*runs] if isinstance(runs, dict) else []
    place = plan.index(folder.name) if folder.name in plan else len(plan)
    return folder.parent, place, folder


def _read_run(folder: Path) -> RecordedRun:
    file = folder / "rounds.jsonl"
    by_round: dict[int, Line] = {}
    for number, line in enumerate(read_json_lines(file), start=1):
        if line is None or type(line.get("round")) is not int:
            expected = "a folder whose `rounds.jsonl` has one round in each line"
            raise parameter_error("run", expected, str(file), f"See line {number}.")
        by_round[line["round"]] = _without_other_lists(line)  # the last line counts
    lines = [by_round[number] for number in sorted(by_round)]
    above = _config(folder.parent)
    environment = _config(folder, "versions")
    if "runs" in above and "engine" in above:
        environment["engine"] = above["engine"]
    return RecordedRun(folder, _config(folder), lines, environment)


def _read_tournament(file: Path) -> RecordedTournament:
    config = _config(file.parent)
    n, metric = config.get("num_nodes"), config.get("metric")
    if type(n) is not int or not isinstance(metric, str):
        expected = "a folder as `flwr-ctma tournament` writes it"
        raise parameter_error("run", expected, str(file), "See its `config.json`.")
    return RecordedTournament(file.parent, n, metric, read_matches(file))


def _config(folder: Path, name: str = "config") -> dict[str, Any]:
    file = folder / f"{name}.json"
    config = read_json(file)
    if config is None and file.exists():
        expected = f"a folder whose `{file.name}` holds a JSON object"
        raise parameter_error("run", expected, str(file))
    return config or {}


def _without_other_lists(line: Line) -> Line:
    return {k: v for k, v in line.items() if k not in _NODES or _is_node_list(v)}


def _is_node_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(node, int) for node in value)


def finite(value: object) -> float | None:
    """Return a finite number as it is; None for everything else that JSON may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
