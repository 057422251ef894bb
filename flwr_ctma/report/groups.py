"""Runs that differ in nothing but their seed, side by side with the others."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr_ctma.experiments.curves import Curve
from flwr_ctma.report.runs import RecordedRun, finite

__all__ = ["RunGroup", "Scenario", "group_runs", "run_label", "varying_keys"]

# Settings of the world; the other settings are choices of the user.
_WORLD = (
    *("attack", "num-malicious-nodes", "num-nodes", "dataset", "partitioner"),
    *("alpha", "fraction-train"),
)
# Settings that change no training.
_IRRELEVANT = (
    *("seed", "output", "evaluate-every", "fraction-evaluate", "device", "backend"),
)


@dataclass(frozen=True)
class RunGroup:
    """Runs of one configuration, with different seeds."""

    label: str
    runs: Sequence[RecordedRun]

    @property
    def rounds(self) -> list[int]:
        """Rounds that all runs have."""
        return sorted(set.intersection(*(set(run.rounds) for run in self.runs)))

    @property
    def last(self) -> int:
        """Last of these rounds."""
        return max(self.rounds, default=0)

    @property
    def is_finished(self) -> bool:
        """Whether all runs have all planned rounds."""
        return all(self.last >= (run.planned_rounds or 0) for run in self.runs)

    def curve(self, metric: str) -> Curve:
        """Return a metric by round, over the rounds in which all runs measured it."""
        measured = set.intersection(*(run.measured(metric) for run in self.runs))
        rounds = [number for number in self.rounds if number in measured]
        return Curve.over_runs(rounds, [self.at(metric, n) for n in rounds])

    def final(self, metric: str) -> list[float]:
        """Return a metric of every run after the last round; empty if any has none."""
        return self.at(metric, self.last) if self.rounds else []

    def worst_late(self, metric: str) -> float | None:
        """Return the least mean of a metric over the second half of the rounds."""
        curve = self.curve(metric)
        late = [
            mean
            for number, mean in zip(curve.rounds, curve.mean, strict=True)
            if 2 * number > self.last
        ]
        known = [mean for mean in late if mean is not None]
        return min(known) if known and len(known) == len(late) else None

    def at(self, metric: str, number: int) -> list[float]:
        """Return a metric of every run after a round; empty if any has none."""
        values = [
            run.values(run.key(metric))[run.rounds.index(number)] for run in self.runs
        ]
        found = [value for value in values if value is not None]
        return found if len(found) == len(values) else []

    def average(self, name: str) -> float | None:
        """Average a number, or the length of a list of nodes, over rounds and runs."""
        values = [
            line.get(name)
            for run in self.runs
            for line in run.lines
            if line["round"] > 0
        ]
        counts = [finite(len(v) if isinstance(v, list) else v) for v in values]
        found = [count for count in counts if count is not None]
        return statistics.fmean(found) if found else None


@dataclass(frozen=True)
class Scenario:
    """Groups of runs in the same world; one panel of a figure.

    Attributes
    ----------
    config : dict[str, Any]
        Settings of the world that differ between scenarios.
    title : str
        These settings; attack and number of malicious clients are always named.
    groups : sequence of RunGroup
    """

    config: dict[str, Any]
    title: str
    groups: Sequence[RunGroup]


def varying_keys(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the keys whose values differ between runs and change the training."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if key not in _IRRELEVANT
        and len({repr(run.config.get(key)) for run in runs}) > 1
    ]


def group_runs(runs: Sequence[RecordedRun]) -> list[Scenario]:
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
    >>> for scenario in group_runs([RecordedRun(Path(), c, []) for c in configs]):
    ...     print(scenario.title, [(g.label, len(g.runs)) for g in scenario.groups])
    alie [('cwmed', 2), ('gm', 2)]
    mimic [('cwmed', 2), ('gm', 2)]
    """
    differing = varying_keys(runs)
    world = [key for key in differing if key in _WORLD]
    choice = [key for key in differing if key not in _WORLD]
    found: dict[str, dict[str, list[RecordedRun]]] = {}
    for run in runs:
        place = found.setdefault(repr([run.config.get(key) for key in world]), {})
        place.setdefault(repr([run.config.get(key) for key in choice]), []).append(run)
    scenarios = []
    for by_choice in found.values():
        config = next(iter(by_choice.values()))[0].config
        groups = [one for same in by_choice.values() for one in _groups(same, choice)]
        differs = {key: config.get(key) for key in world}
        scenarios.append(Scenario(differs, _title(config, world), groups))
    return scenarios


def run_label(run: RecordedRun, runs: Sequence[RecordedRun]) -> str:
    """Return the settings that differ from other runs, or the folder's name."""
    keys = [*varying_keys(runs), "seed"]
    parts = [_setting(key, run.config[key]) for key in keys if key in run.config]
    return ", ".join(parts) if len(runs) > 1 and parts else run.path.name


def _title(config: Any, world: Sequence[str]) -> str:
    f, n = (config.get(f"num-{kind}") for kind in ("malicious-nodes", "nodes"))
    parts = [str(config["attack"])] if "attack" in config else []
    named = {"attack"}
    if f is not None and n is not None:
        parts.append(f"{f} of {n} clients malicious")
        named |= {"num-malicious-nodes", "num-nodes"}
    parts += [_setting(key, config.get(key)) for key in world if key not in named]
    return ", ".join(parts)


def _setting(key: str, value: object) -> str:
    """Return a setting as text; values that explain themselves go without their key."""
    if key in ("attack", "aggregator", "dataset", "optimizer"):
        return str(value)
    return f"{key} {value}"


def _groups(runs: Sequence[RecordedRun], choice: Sequence[str]) -> list[RunGroup]:
    """Make one group of runs with different seeds, or else one of each run."""
    config = runs[0].config
    label = ", ".join(_setting(key, config.get(key)) for key in choice)
    label = label or str(config.get("aggregator", ""))
    seeds = {repr(run.config.get("seed")) for run in runs}
    if len(seeds) == len(runs):
        return [RunGroup(label or runs[0].path.name, runs)]
    return [RunGroup(f"{label} {run.path.name}".strip(), [run]) for run in runs]
