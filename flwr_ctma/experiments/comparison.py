"""The same run under several rules, attacks, partitions and seeds, side by side."""

import csv
import itertools
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flwr_ctma.experiments.runtimes import Engine
from flwr_ctma.tracking.run_folder import RunFolder

__all__ = ["Curve", "Job", "Rounds", "Scenario", "curves", "jobs", "table", "write_csv"]

Rounds = list[dict[str, Any]]
"""The rounds of a run: what the ServerApp wrote, in order."""

_CHECKPOINTS = 6


@dataclass(frozen=True)
class Scenario:
    """What the clients do and hold: an attack, and how the data is partitioned."""

    attack: str
    partitioner: str

    def __str__(self) -> str:
        """As a title."""
        return f"{self.attack}, {self.partitioner} partitions"


@dataclass(frozen=True)
class Job:
    """One run."""

    scenario: Scenario
    aggregator: str
    seed: int

    @property
    def config(self) -> dict[str, str | int]:
        """What sets it apart in the run-config."""
        return {
            "aggregator": self.aggregator,
            "attack": self.scenario.attack,
            "partitioner": self.scenario.partitioner,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        """Name of its folder.

        Examples
        --------
        >>> str(Job(Scenario("signflip", "iid"), "ctma(nnm(gm))", 1))
        'ctma-nnm-gm_signflip_iid_seed-1'
        """
        words = [self.aggregator, self.scenario.attack, self.scenario.partitioner]
        plain = [re.sub(r"[^\w.=]+", "-", word).strip("-") for word in words]
        return "_".join([*plain, f"seed-{self.seed}"])

    def run(
        self, engine: Engine, settings: Mapping[str, Any], folder: Path
    ) -> Iterator[Rounds]:
        """Run it; yield the rounds so far, again and again, until all are there.

        Parameters
        ----------
        engine : Engine
            What runs it.
        settings : Mapping[str, Any]
            Run-config of all jobs.
        folder : Path
            Where the ServerApp writes, and the log goes.

        Raises
        ------
        RunFailed
            If the run did not finish.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = RunFolder(folder)
        config = {**settings, **self.config, "output": str(folder.resolve())}
        for _ in engine.run(config, int(config["num-nodes"]), folder / "log.txt"):
            yield written.rounds()
        yield written.rounds()


def jobs(
    attacks: Iterable[str],
    partitioners: Iterable[str],
    aggregators: Iterable[str],
    seeds: Iterable[int],
) -> list[Job]:
    """Make all combinations, scenario by scenario."""
    return [
        Job(Scenario(attack, partitioner), aggregator, seed)
        for attack, partitioner, seed, aggregator in itertools.product(
            attacks, partitioners, seeds, aggregators
        )
    ]


@dataclass(frozen=True)
class Curve:
    """Accuracy by round of one rule in one scenario, over seeds.

    Parameters
    ----------
    aggregator : str
        The rule.
    rounds : Sequence[int]
        Rounds that every run has.
    accuracies : Sequence[Sequence[float]]
        For each of these rounds, the accuracy of every run.
    malicious_kept : float
        Malicious clients that counted in a round, on average.
    backdoor : float or None
        How often a backdoor opens after the last round; None if there is none.
    """

    aggregator: str
    rounds: Sequence[int]
    accuracies: Sequence[Sequence[float]]
    malicious_kept: float
    backdoor: float | None = None

    @property
    def means(self) -> list[float]:
        """Mean over seeds, by round."""
        return [statistics.fmean(values) for values in self.accuracies]

    @property
    def final(self) -> str:
        """Mean accuracy after the last round, in per cent; ± deviation over seeds."""
        values = self.accuracies[-1]
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * self.means[-1]:.1f}{spread}"


def curves(results: Mapping[Job, Rounds]) -> dict[Scenario, list[Curve]]:
    """Gather the runs of each rule in each scenario."""
    grouped: dict[Scenario, dict[str, list[Rounds]]] = {}
    for job, rounds in results.items():
        runs = grouped.setdefault(job.scenario, {}).setdefault(job.aggregator, [])
        runs.append(rounds)
    return {
        scenario: [_curve(aggregator, runs) for aggregator, runs in by_rule.items()]
        for scenario, by_rule in grouped.items()
    }


def _curve(aggregator: str, runs: Sequence[Rounds]) -> Curve:
    evaluated = [[line for line in run if "accuracy" in line] for run in runs]
    common = list(zip(*evaluated, strict=False))
    kept = [line["malicious-kept"] for run in runs for line in run[1:]]
    key = "backdoor-success"
    opened = [run[-1][key] for run in evaluated if run and key in run[-1]]
    return Curve(
        aggregator,
        [lines[0]["round"] for lines in common],
        [[line["accuracy"] for line in lines] for lines in common],
        statistics.fmean(kept) if kept else 0.0,
        statistics.fmean(opened) if opened else None,
    )


def table(by_rule: Sequence[Curve]) -> Table:
    """Show accuracy by rule and round, in per cent."""
    last = min(curve.rounds[-1] for curve in by_rule)
    step = max(-(-last // _CHECKPOINTS), 1)
    common = set[int].intersection(*(set(curve.rounds) for curve in by_rule))
    checkpoints = [number for number in range(step, last, step) if number in common]
    shown = Table(box=SIMPLE_HEAD)
    shown.add_column("after round", no_wrap=True)
    for server_round in checkpoints:
        shown.add_column(str(server_round), justify="right")
    shown.add_column(str(last), justify="right", style="bold", no_wrap=True)
    shown.add_column("kept", justify="right", no_wrap=True)
    opens = any(curve.backdoor is not None for curve in by_rule)
    if opens:
        shown.add_column("backdoor", justify="right", no_wrap=True)
    for curve in by_rule:
        at = dict(zip(curve.rounds, curve.means, strict=True))
        shown.add_row(
            curve.aggregator,
            *(f"{100 * at[server_round]:.1f}" for server_round in checkpoints),
            curve.final,
            f"{curve.malicious_kept:.1f}",
            *([f"{100 * (curve.backdoor or 0):.1f}"] if opens else []),
        )
    return shown


def write_csv(path: Path, results: Mapping[Job, Rounds]) -> None:
    """Write one row for each round of each run."""
    rows = [
        {**job.config, **line} for job, rounds in results.items() for line in rounds
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
