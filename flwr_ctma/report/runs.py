"""What run folders hold, read again."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.tournament import Scores, played, scores

__all__ = ["Run", "TournamentResult", "find", "finite"]

Line = Mapping[str, Any]

# What lists nodes, if it is a list: an app may have metrics of these names.
_NODES = ("asked", "missing", "rejected", "trimmed", "suspected")
_ALIKE = {"accuracy": r"(\b|_)acc(uracy)?(\b|_)", "loss": r"loss(\b|_)"}


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes
    ----------
    path : Path
        Its folder.
    config : Mapping[str, Any]
        What it was told.
    lines : Sequence[Mapping[str, Any]]
        A line for each round, in order.
    environment : Mapping[str, Any]
        What it ran on, if that was recorded.
    """

    path: Path
    config: Mapping[str, Any]
    lines: Sequence[Line]
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds, 0 for the initial model."""
        return [line["round"] for line in self.lines]

    @property
    def planned(self) -> int | None:
        """How many rounds there should be."""
        planned = self.config.get("num-server-rounds")
        return planned if isinstance(planned, int) else None

    def key(self, metric: str) -> str | None:
        """Name of a metric: as the server measured it, or else the clients.

        Examples
        --------
        >>> Run(Path(), {}, [{"round": 1, "clients-eval_acc": 0.5}]).key("accuracy")
        'clients-eval_acc'
        """
        names = list(dict.fromkeys(name for line in self.lines for name in line))
        exact = [name for name in (metric, f"clients-{metric}") if name in names]
        alike = [name for name in names if re.search(_ALIKE[metric], name)]
        alike.sort(key=lambda name: not name.startswith("clients-"))
        return next(iter([*exact, *alike]), None)

    def measured(self, metric: str) -> set[int]:
        """Rounds in which a metric was measured, also if what came out is no number."""
        name = self.key(metric)
        return {line["round"] for line in self.lines if name in line}

    def values(self, name: str | None) -> list[float | None]:
        """Values of a metric by round; None where there is no number."""
        return [finite(line.get(name)) if name else None for line in self.lines]

    @cached_property
    def malicious(self) -> range:
        """Nodes known to be malicious: simulations know them by their partitions."""
        known = any("malicious-kept" in line for line in self.lines)
        count = self.config.get("num-malicious-nodes")
        attacked = known and self.config.get("attack") != "none"
        return range(count if attacked and isinstance(count, int) else 0)


@dataclass(frozen=True)
class TournamentResult:
    """A tournament.

    Attributes
    ----------
    path : Path
        Its folder.
    num_nodes : int
    metric : str
    scores : Scores
        Number of malicious clients → rule → attack → value.
    """

    path: Path
    num_nodes: int
    metric: str
    scores: Scores


def find(path: Path) -> Iterator[Run | TournamentResult]:
    """Find the runs in a folder: its own, or those in the folders below.

    Raises
    ------
    ValueError
        If there is none, or a file is not what was written.
    """
    folders = [file.parent for file in path.rglob("rounds.jsonl")]
    yield from map(_run, sorted(folders, key=_place))
    cups = sorted(path.rglob("matches.jsonl"))
    yield from map(_cup, cups)
    if not folders and not cups:
        raise parameter_error(
            "run",
            "a folder with `rounds.jsonl` or `matches.jsonl` in it or below",
            str(path),
            "`flwr-ctma compare` and `tournament` write such folders; in an app of "
            "your own, `Observed(strategy, RunFolder(path).append)` does.",
        )


def _place(folder: Path) -> tuple[Path, int, Path]:
    """Order runs as they were planned, where that is known."""
    runs = _config(folder.parent).get("runs")
    plan = [*runs] if isinstance(runs, dict) else []
    place = plan.index(folder.name) if folder.name in plan else len(plan)
    return folder.parent, place, folder


def _run(folder: Path) -> Run:
    file = folder / "rounds.jsonl"
    found = _lines(file)
    if not all(type(line.get("round")) is int for line in found):
        raise parameter_error(
            "run", "a folder whose lines have the number of a round", str(file)
        )
    by_round = {line["round"]: _plain(line) for line in found}
    lines = [by_round[number] for number in sorted(by_round)]  # the last line counts
    above = _config(folder.parent)
    environment = _config(folder, "versions")
    if "runs" in above and "engine" in above:
        environment["engine"] = above["engine"]
    return Run(folder, _config(folder), lines, environment)


def _cup(file: Path) -> TournamentResult:
    config = _config(file.parent)
    try:
        found = scores(played(file))
        return TournamentResult(
            file.parent, config["num_nodes"], config["metric"], found
        )
    except (LookupError, TypeError) as error:
        expected = "a folder as `flwr-ctma tournament` writes it"
        raise parameter_error("run", expected, str(file), repr(error)) from None


def _lines(file: Path) -> list[Line]:
    """Read lines of JSON; one that is being written is left out."""
    try:
        text = file.read_text(encoding="utf-8")
        return [dict(json.loads(line)) for line in text.split("\n")[:-1]]
    except (RecursionError, TypeError, ValueError) as error:
        raise parameter_error(
            "run", "a folder with whole lines", str(file), str(error)
        ) from None


def _config(folder: Path, name: str = "config") -> dict[str, Any]:
    file = folder / f"{name}.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise parameter_error(
            "run", "a folder with its configuration", str(file), str(error)
        ) from None
    return config if isinstance(config, dict) else {}


def _plain(line: Line) -> Line:
    return {k: v for k, v in line.items() if k not in _NODES or _names_nodes(v)}


def _names_nodes(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(node, int) for node in value)


def finite(value: object) -> float | None:
    """Give a finite number; None for all else that JSON may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
