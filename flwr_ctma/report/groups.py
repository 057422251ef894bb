"""Runs that differ in nothing but their seed, side by side with the others."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr_ctma.report.runs import Run, finite

__all__ = ["Group", "Scenario", "Spread", "scenarios", "varying"]

# What the world does; the rest of a run-config is what one may choose.
_WORLD = (
    "attack",
    "num-malicious-nodes",
    "num-nodes",
    "dataset",
    "partitioner",
    "alpha",
    "fraction-train",
)
_CHANCE = ("seed", "output")


@dataclass(frozen=True)
class Spread:
    """A metric of a group by round: mean, least and greatest over its runs.

    A round in which some run has no number is None.
    """

    rounds: Sequence[int]
    mean: Sequence[float | None]
    least: Sequence[float | None]
    greatest: Sequence[float | None]


@dataclass(frozen=True)
class Group:
    """Runs of one configuration."""

    label: str
    runs: Sequence[Run]

    @property
    def rounds(self) -> list[int]:
        """Give the rounds that all runs have."""
        return sorted(set.intersection(*(set(run.rounds) for run in self.runs)))

    @property
    def last(self) -> int:
        """Give the last of them."""
        return max(self.rounds, default=0)

    @property
    def is_finished(self) -> bool:
        """Tell whether all runs have as many rounds as were planned."""
        return all(self.last >= (run.planned or 0) for run in self.runs)

    def spread(self, metric: str) -> Spread:
        """Gather a metric by round, of those in which it was measured."""
        measured = set.intersection(*(run.measured(metric) for run in self.runs))
        rounds = [number for number in self.rounds if number in measured]
        columns = [self.at(metric, number) for number in rounds]
        return Spread(
            rounds,
            [statistics.fmean(c) if c else None for c in columns],
            [min(c) if c else None for c in columns],
            [max(c) if c else None for c in columns],
        )

    def final(self, metric: str) -> list[float]:
        """Give a metric of every run after the last round; empty if any has none."""
        return self.at(metric, self.last) if self.rounds else []

    def at(self, metric: str, number: int) -> list[float]:
        """Give a metric of every run after a round; empty if any has none."""
        return _whole(
            [run.values(run.key(metric))[run.rounds.index(number)] for run in self.runs]
        )

    def average(self, name: str) -> float | None:
        """Average a number, or the length of a list of nodes, over rounds and runs."""
        said = [
            line.get(name)
            for run in self.runs
            for line in run.lines
            if line["round"] > 0
        ]
        counts = [finite(len(v) if isinstance(v, list) else v) for v in said]
        found = [count for count in counts if count is not None]
        return statistics.fmean(found) if found else None


@dataclass(frozen=True)
class Scenario:
    """What the runs of several groups have in common; one panel of a figure."""

    config: dict[str, Any]
    groups: Sequence[Group]

    @property
    def title(self) -> str:
        """Name what sets it apart."""
        return ", ".join(spelled(key, value) for key, value in self.config.items())


def varying(runs: Sequence[Run]) -> list[str]:
    """Give the keys of the configurations that differ between runs, but for chance."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if key not in _CHANCE and len({repr(run.config.get(key)) for run in runs}) > 1
    ]


def scenarios(runs: Sequence[Run]) -> list[Scenario]:
    """Sort runs into scenarios, and there into groups.

    Examples
    --------
    >>> from pathlib import Path
    >>> configs = [
    ...     {"aggregator": rule, "attack": attack, "seed": seed}
    ...     for attack in ("alie", "mimic")
    ...     for rule in ("cwmed", "gm")
    ...     for seed in (1, 2)
    ... ]
    >>> for scenario in scenarios([Run(Path(), c, []) for c in configs]):
    ...     print(scenario.title, [(g.label, len(g.runs)) for g in scenario.groups])
    alie [('cwmed', 2), ('gm', 2)]
    mimic [('cwmed', 2), ('gm', 2)]
    """
    differing = varying(runs)
    world = [key for key in differing if key in _WORLD]
    choice = [key for key in differing if key not in _WORLD]
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        place = found.setdefault(repr([run.config.get(key) for key in world]), {})
        place.setdefault(repr([run.config.get(key) for key in choice]), []).append(run)
    return [
        Scenario(
            {key: next(iter(by.values()))[0].config.get(key) for key in world},
            [group for same in by.values() for group in _groups(same, choice)],
        )
        for by in found.values()
    ]


def spelled(key: str, value: object) -> str:
    """Write a setting so that it says what it is, as short as can be."""
    if key in ("attack", "aggregator", "dataset", "optimizer"):
        return str(value)
    return f"{key} {value}"


def _groups(runs: Sequence[Run], choice: Sequence[str]) -> list[Group]:
    """Make one group of runs with different seeds, or else one of each run."""
    config = runs[0].config
    label = ", ".join(spelled(key, config.get(key)) for key in choice)
    label = label or str(config.get("aggregator", ""))
    seeds = {repr(run.config.get("seed")) for run in runs}
    if len(seeds) == len(runs):
        return [Group(label or runs[0].path.name, runs)]
    return [Group(f"{label} {run.path.name}".strip(), [run]) for run in runs]


def _whole(values: Sequence[float | None]) -> list[float]:
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else []
