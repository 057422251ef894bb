"""Rules against attacks: which rule holds for an app in its worst case."""

import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.attacks import ATTACKS
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.app import parse_app
from flwr_ctma.experiments.csv_table import write_csv
from flwr_ctma.experiments.estimate import (
    ROUNDS_KEY,
    Trial,
    estimate_seconds,
    makespan,
    num_rounds_of,
)
from flwr_ctma.experiments.match import (
    Match,
    MatchResult,
    match_config,
    match_from_json,
    run_match,
)
from flwr_ctma.experiments.names import check_names
from flwr_ctma.experiments.processes import describe
from flwr_ctma.experiments.workers import exclusive_folder, single_core_pool
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.tracking.json_lines import (
    append_line,
    read_json,
    read_json_lines,
    write_json,
)

__all__ = [
    "DEFAULT_AGGREGATORS",
    "DEFAULT_ATTACKS",
    "Match",
    "MatchResult",
    "Tournament",
    "read_matches",
    "undefined_reason",
    "write_matches",
]

DEFAULT_AGGREGATORS = (
    *("mean", "cwmed", "gm", "ctma(gm)", "nnm(gm)", "nnm(cwmed)", "caf"),
)

# At least one of each family: none, alone, with poisoned data, colluding, aimed at the
# rule in use, and over rounds.
_FAMILIES = (
    *("none", "signflip", "labelflip", "ipm(epsilon=0.5)", "alie", "mirror(alie)"),
    *("mimic", "minmax", "optimalipm", "optimalalie", "poisonedfl"),
)
DEFAULT_ATTACKS = tuple(text for text in _FAMILIES if text.partition("(")[0] in ATTACKS)


@dataclass(frozen=True)
class Tournament:
    """All rules against all attacks in one app; each match is a whole run.

    The app needs no change: its ClientApp is wrapped so that the first f partitions are
    malicious, and the strategy that its ServerApp starts is wrapped in the rule.

    Parameters
    ----------
    app : str
        Folder of a Flower app, or `module:server_app,module:client_app`.
    run_config : Mapping[str, Any]
        Run-config of every match. The key `seed` takes the seed of the match,
        `num-nodes` the number of nodes; `attack` and `num-malicious-nodes` switch the
        app's own attack off. Keys that the app does not have are left out.
    num_nodes : int (default: 17)
    metric : str (default: "accuracy")
        Larger is better. As the server reports it, or else the clients.
    last : int (default: 3)
        The value of a match is the mean of the last so many evaluations.

    Raises
    ------
    ValueError
        If the number of nodes or of evaluations is below 1.
    """

    app: str
    run_config: Mapping[str, Any]
    num_nodes: int = 17
    metric: str = "accuracy"
    last: int = 3

    def __post_init__(self) -> None:
        for name in ("num_nodes", "last"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise parameter_error(name, "an integer of at least 1", value)

    def matches(
        self,
        aggregators: Iterable[str],
        attacks: Iterable[str],
        malicious: Iterable[int],
        seeds: Iterable[int],
    ) -> list[Match]:
        """Return all combinations.

        Raises
        ------
        ValueError
            For an unknown rule or attack, a number of malicious clients that is not
            below half, a negative seed, and a value that the app refuses.
        """
        aggregators, attacks, seeds = [*aggregators], [*attacks], [*seeds]
        malicious = [*malicious]
        app = parse_app(self.app)
        check_names(app, aggregators, attacks)
        for f in malicious:
            if not 0 <= f < self.num_nodes / 2:
                allowed = f"at least 0 and less than half of {self.num_nodes} clients"
                raise parameter_error("malicious", allowed, f)
        for seed in seeds:
            if seed < 0:
                raise parameter_error("seed", "at least 0", seed)
            app.check(match_config(self.run_config, self.num_nodes, seed))
        every = itertools.product(malicious, seeds, attacks, aggregators)
        return list(
            dict.fromkeys(
                Match(rule, attack, f, seed) for f, seed, attack, rule in every
            )
        )

    def run_match(
        self, match: Match, kind: type[InProcessGrid] = InProcessGrid
    ) -> MatchResult:
        """Run the app once under a rule and an attack.

        Raises
        ------
        Exception
            Whatever ends the run.
        """
        app = parse_app(self.app)
        check_names(app, [match.aggregator], [match.attack])
        reason = undefined_reason(match.aggregator, self.num_nodes, match.num_malicious)
        if reason:
            return MatchResult(None, 0.0, "undefined", reason)
        return run_match(
            *(match, app, self.run_config, self.num_nodes, self.metric, self.last, kind)
        )

    def estimate(
        self,
        plan: Sequence[Match],
        folder: Path,
        workers: int,
        kind: type[InProcessGrid] = InProcessGrid,
    ) -> float | None:
        """Return the seconds that the unfinished matches take in so many processes.

        If the folder holds finished matches, the others take as long on average;
        otherwise some matches are tried. None without a number of rounds.
        """
        left = self.unfinished(plan, folder)
        saved = _without_crashes(folder / "matches.jsonl").values()
        known = [one.seconds for one in saved if one.status == "finished"]
        if not known:
            return estimate_seconds(self.trials(left, kind), workers)
        return makespan([statistics.fmean(known)] * len(left), workers)

    def trials(
        self, plan: Sequence[Match], kind: type[InProcessGrid] = InProcessGrid
    ) -> list[Trial]:
        """Return matches as trials for an estimate; none without a number of rounds."""
        rounds = num_rounds_of(self.run_config)
        return [
            Trial(partial(_try, self, match, kind), rounds, self.num_nodes)
            for match in plan
            if rounds
        ]

    def unfinished(self, plan: Sequence[Match], folder: Path) -> list[Match]:
        """Return the matches that can be run and that a folder does not hold yet."""
        saved = _without_crashes(folder / "matches.jsonl")
        return [
            match
            for match in plan
            if match not in saved
            and not undefined_reason(
                match.aggregator, self.num_nodes, match.num_malicious
            )
        ]

    def run(
        self,
        plan: Sequence[Match],
        folder: Path,
        workers: int,
        kind: type[InProcessGrid] = InProcessGrid,
    ) -> Iterator[tuple[Match, MatchResult]]:
        """Run the matches that the folder does not hold yet, and save every result.

        Closing the iterator, as an exception does, kills the running matches.

        Yields
        ------
        tuple[Match, MatchResult]
            First the saved results, then each new one. A run that crashes ends no other
            run. Its result has `failed` set and is run again the next time.

        Raises
        ------
        ValueError
            If the folder holds another tournament, or another process is using it.
        """
        with exclusive_folder(folder):
            saved = self._resume(folder)
            yield from ((match, saved[match]) for match in plan if match in saved)
            left = [match for match in plan if match not in saved]
            with single_core_pool(workers, folder / "log.txt") as pool:
                futures = {
                    pool.submit(self.run_match, match, kind): match for match in left
                }
                for future in as_completed(futures):
                    match, error = futures.pop(future), future.exception()
                    result = _crash(error) if error else future.result()
                    line = json.dumps(asdict(match) | asdict(result))
                    append_line(folder / "matches.jsonl", line)
                    yield match, result

    def saved(self, plan: Sequence[Match], folder: Path) -> int:
        """Return how many matches of the plan a folder holds the results of."""
        return len({*plan} & _without_crashes(folder / "matches.jsonl").keys())

    def _resume(self, folder: Path) -> dict[Match, MatchResult]:
        """Read the saved results; refuse the folder of another tournament."""
        own, path = asdict(self), folder / "config.json"
        other = read_json(path)
        if other is not None and other != json.loads(json.dumps(own)):
            differing = [key for key in own if other.get(key) != own[key]]
            raise parameter_error(
                "output",
                "a new folder, or the folder of a tournament with the same settings",
                str(folder),
                f"There, {', '.join(differing) or 'other settings'} differ. "
                "Name another folder.",
            )
        write_json(path, own)
        return _without_crashes(folder / "matches.jsonl")


def _try(
    tournament: Tournament, match: Match, kind: type[InProcessGrid], rounds: int
) -> None:
    """Run a match for so many rounds, and keep nothing."""
    shorter = {**tournament.run_config, ROUNDS_KEY: rounds}
    if "output" in shorter:
        shorter["output"] = ""
    replace(tournament, run_config=shorter).run_match(match, kind)


def read_matches(file: Path) -> dict[Match, MatchResult]:
    """Read the saved results of matches; the last one of each match counts.

    A line that is no JSON object costs its match alone: a killed process or a full disk
    leaves such a line.

    Raises
    ------
    ValueError
        If a line holds something else than a match.
    """
    results = {}
    for number, line in enumerate(read_json_lines(file), start=1):
        if line is None:
            log(WARNING, "Line %d of %s is damaged; it is skipped.", number, file)
            continue
        try:
            match, result = match_from_json(line)
            results[match] = result
        except (LookupError, TypeError, ValueError) as error:
            expected = "a file of a tournament, with one match in each line"
            remedy = f"Line {number}: {type(error).__name__}: {error}."
            raise parameter_error("file", expected, str(file), remedy) from None
    return results


def undefined_reason(aggregator: str, n: int, f: int) -> str:
    """Return why a rule is undefined for f malicious of n clients; empty if it is not.

    Examples
    --------
    >>> undefined_reason("krum", n=17, f=8).partition(" Found")[0]
    'Parameter `f` should be at most 7 for krum among n = 17 rows.'
    >>> undefined_reason("krum", n=17, f=7)
    ''
    """
    if aggregator == "fedavg":
        return ""
    try:
        parse_aggregator(aggregator).check(n, f)
    except ValueError as error:
        return str(error)
    return ""


def write_matches(path: Path, results: Mapping[Match, MatchResult]) -> None:
    """Write a table with one row for each match."""
    rows = [asdict(match) | asdict(result) for match, result in results.items()]
    write_csv(path, rows)


def _without_crashes(file: Path) -> dict[Match, MatchResult]:
    results = read_matches(file).items()
    return {match: one for match, one in results if one.status != "crashed"}


def _crash(error: BaseException) -> MatchResult:
    return MatchResult(None, 0.0, "crashed", describe(error))
