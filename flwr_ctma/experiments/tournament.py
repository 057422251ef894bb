"""Rules against attacks: which rule holds for an app, in its worst case."""

import csv
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.attacks import parse_attack
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.match import Match, MatchResult, read, run_match
from flwr_ctma.experiments.workers import alone_in, one_core_each
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.tracking.run_folder import append_line

__all__ = [
    "Match",
    "MatchResult",
    "Tournament",
    "played",
    "scores",
    "undefined",
    "worst",
    "write_matches",
]


@dataclass(frozen=True)
class Tournament:
    """All rules against all attacks, in one app, each match a whole run.

    Any app will do, unchanged: its ClientApp is wrapped so that the first f partitions
    are malicious, and whatever strategy its ServerApp starts is wrapped in the rule.

    Parameters
    ----------
    app : str
        Folder of a Flower app, or `module:server_app,module:client_app`.
    run_config : Mapping[str, Any]
        Of every run; the seed of a match takes the place of a key `seed`, the number of
        nodes that of `num-nodes`, and an attack of the app's own (`attack`,
        `num-malicious-nodes`) is switched off.
    num_nodes : int
    metric : str
        Larger is better; from the server's evaluation, or else the clients'.
    """

    app: str
    run_config: Mapping[str, Any]
    num_nodes: int = 17
    metric: str = "accuracy"

    def matches(
        self,
        aggregators: Iterable[str],
        attacks: Iterable[str],
        malicious: Iterable[int],
        seeds: Iterable[int],
    ) -> list[Match]:
        """Make all combinations.

        Raises
        ------
        ValueError
            For a rule, an attack or a number of malicious clients that is none.
        """
        plan = [
            Match(rule, attack, f, seed)
            for f, seed, attack, rule in itertools.product(
                malicious, seeds, attacks, aggregators
            )
        ]
        for match in plan:
            parse_attack(match.attack)
            if match.aggregator != "fedavg":
                parse_aggregator(match.aggregator)
            if not 0 <= match.num_malicious < self.num_nodes / 2:
                raise parameter_error(
                    "malicious",
                    f"at least 0 and less than half of {self.num_nodes} clients",
                    match.num_malicious,
                )
        return plan

    def run_match(
        self, match: Match, kind: type[InProcessGrid] = InProcessGrid
    ) -> MatchResult:
        """Run the app once, under a rule and an attack."""
        if why := undefined(match.aggregator, self.num_nodes, match.num_malicious):
            return MatchResult(None, 0.0, why)
        return run_match(
            match, self.app, self.run_config, self.num_nodes, self.metric, kind
        )

    def play_all(
        self,
        plan: Sequence[Match],
        folder: Path,
        workers: int,
        kind: type[InProcessGrid] = InProcessGrid,
    ) -> Iterator[tuple[Match, MatchResult]]:
        """Play what is not in the folder yet, each outcome written as it comes.

        Yields
        ------
        tuple[Match, Outcome]
            Those that were there first, then the others as they end. A run that fails
            is an outcome as well, with its reason, and ends no other; it is played
            again the next time.

        Raises
        ------
        ValueError
            If the folder holds another tournament, or another process is at work in it.
        """
        with alone_in(folder):
            yield from self._play_all(plan, folder, workers, kind)

    def _play_all(
        self,
        plan: Sequence[Match],
        folder: Path,
        workers: int,
        kind: type[InProcessGrid],
    ) -> Iterator[tuple[Match, MatchResult]]:
        done = self._resume(folder)
        yield from ((match, done[match]) for match in plan if match in done)
        left = [match for match in plan if match not in done]
        with one_core_each(workers, folder / "log.txt") as pool:
            futures = {
                pool.submit(self.run_match, match, kind): match for match in left
            }
            for future in as_completed(futures):
                match = futures[future]
                if error := future.exception():
                    yield match, _failed(error)
                    continue
                outcome = future.result()
                line = json.dumps(asdict(match) | asdict(outcome))
                append_line(folder / "matches.jsonl", line)
                yield match, outcome

    def _resume(self, folder: Path) -> dict[Match, MatchResult]:
        """Read what was played; refuse a folder that holds another tournament."""
        own, path = asdict(self), folder / "config.json"
        if path.exists() and json.loads(path.read_text()) != own:
            raise parameter_error(
                "output",
                "a new folder, or that of a tournament of the same app and run-config",
                str(folder),
                "Name another one.",
            )
        path.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        file = folder / "matches.jsonl"
        return played(file) if file.exists() else {}


Scores = dict[int, dict[str, dict[str, float | None]]]


def played(file: Path) -> dict[Match, MatchResult]:
    """Read matches that were played; one that is being written is left out.

    Raises
    ------
    ValueError
        If a line is not what was written.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        return dict(read(json.loads(line)) for line in lines)
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        expected = "that of a tournament, each line a match"
        raise parameter_error("file", expected, str(file), repr(error)) from None


def _failed(error: BaseException) -> MatchResult:
    return MatchResult(None, 0.0, f"{type(error).__name__}: {error}")


def undefined(aggregator: str, n: int, f: int) -> str:
    """Say why a rule is not defined for so many, if it is not.

    Examples
    --------
    >>> undefined("krum", n=17, f=8)
    'Parameter `f` should be at most 7 for krum among n = 17 rows. Found \
`f = 8`. Sample more clients, or use ctma(gm).'
    >>> undefined("krum", n=17, f=7)
    ''
    """
    if aggregator == "fedavg":
        return ""
    rows = np.random.default_rng(0).normal(size=(n, 3))
    try:
        parse_aggregator(aggregator)(rows, f=f)
    except ValueError as error:
        return str(error)
    return ""


def scores(outcomes: Mapping[Match, MatchResult]) -> Scores:
    """Average over seeds: number of malicious clients → rule → attack → value.

    Rules come with the best worst case first. An attack that a rule did not meet, or is
    not defined under, is None.
    """
    gathered: dict[int, dict[str, dict[str, list[float]]]] = {}
    for match, outcome in outcomes.items():
        by_rule = gathered.setdefault(match.num_malicious, {})
        values = by_rule.setdefault(match.aggregator, {}).setdefault(match.attack, [])
        if outcome.value is not None:
            values.append(outcome.value)
    return {f: _ranked(by_rule) for f, by_rule in gathered.items()}


def _ranked(
    gathered: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, dict[str, float | None]]:
    attacks = dict.fromkeys(attack for row in gathered.values() for attack in row)
    by_rule = {
        rule: {attack: _mean(row.get(attack, ())) for attack in attacks}
        for rule, row in gathered.items()
    }
    order = sorted(by_rule, key=lambda rule: worst(by_rule[rule]), reverse=True)
    return {rule: by_rule[rule] for rule in order}


def _mean(values: Sequence[float]) -> float | None:
    """Average what there is; what is no number is as bad as can be."""
    mean = statistics.fmean(values) if values else None
    return -math.inf if mean is not None and math.isnan(mean) else mean


def write_matches(path: Path, outcomes: Mapping[Match, MatchResult]) -> None:
    """Write a table with one row for each match."""
    rows = [asdict(match) | asdict(outcome) for match, outcome in outcomes.items()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def worst(by_attack: Mapping[str, float | None]) -> float:
    """Give the worst case of a rule; minus infinity if it is not defined."""
    values = [v for v in by_attack.values() if v is not None]
    return min(values, default=-math.inf)
