"""The same app under several rules, attacks, partitions and seeds, side by side."""

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_ctma.experiments.app import App, num_nodes_for
from flwr_ctma.experiments.curves import Curve
from flwr_ctma.experiments.processes import RunFailed
from flwr_ctma.experiments.runtimes import Engine
from flwr_ctma.experiments.sweep import Sweep, SweepProgress
from flwr_ctma.experiments.sweep_results import (
    FinishedRun,
    PlannedRun,
    mark_finished,
)
from flwr_ctma.experiments.workers import exclusive_folder
from flwr_ctma.tracking.run_folder import RunFolder

__all__ = ["RuleSummary", "comparison_runs", "run_one_by_one", "summarize_rules"]


def comparison_runs(
    app: App,
    settings: Mapping[str, Any],
    attacks: Iterable[str],
    partitioners: Iterable[str],
    aggregators: Iterable[str],
    seeds: Iterable[int],
) -> list[PlannedRun]:
    """Plan all combinations, scenario by scenario."""
    runs = []
    for attack, partitioner, seed, aggregator in itertools.product(
        attacks, partitioners, seeds, aggregators
    ):
        point = {
            "aggregator": aggregator,
            "attack": attack,
            "partitioner": partitioner,
            "seed": seed,
        }
        runs.append(PlannedRun(app.run_config(settings, point), point))
    return list({run.name: run for run in runs}.values())


@dataclass(frozen=True)
class RuleSummary:
    """One rule in one scenario, over seeds.

    Attributes
    ----------
    aggregator : str
    curve : Curve
        Accuracy by round.
    final : sequence of float
        Accuracy of each run after the last evaluated round.
    malicious_kept : float or None
        Malicious clients that counted in a round, on average; None without an attack.
    backdoor : float or None
        Success rate of a backdoor after the last round; None without one.
    """

    aggregator: str
    curve: Curve
    final: Sequence[float]
    malicious_kept: float | None
    backdoor: float | None = None

    @property
    def final_text(self) -> str:
        """Mean final accuracy in per cent, ± standard deviation over seeds."""
        if not self.final:
            return "–"
        spread = statistics.stdev(self.final) if len(self.final) > 1 else None
        mean = f"{100 * statistics.fmean(self.final):.1f}"
        return mean if spread is None else f"{mean} ± {100 * spread:.1f}"


def summarize_rules(
    finished: Iterable[FinishedRun],
) -> dict[str, list[RuleSummary]]:
    """Group runs by scenario and rule: title of the scenario → summaries."""
    grouped: dict[str, dict[str, list[FinishedRun]]] = {}
    for one in finished:
        config = one.run.config
        title = _scenario(config)
        by_rule = grouped.setdefault(title, {})
        by_rule.setdefault(str(config["aggregator"]), []).append(one)
    return {
        title: [_summary(rule, runs) for rule, runs in by_rule.items()]
        for title, by_rule in grouped.items()
    }


def _num_malicious(config: Mapping[str, Any]) -> int:
    """Return how many clients attack: none of them without an attack."""
    return 0 if config["attack"] == "none" else config["num-malicious-nodes"]


def _scenario(config: Mapping[str, Any]) -> str:
    """Return the title of a scenario.

    Examples
    --------
    >>> iid = {"partitioner": "iid", "num-nodes": 17, "num-malicious-nodes": 5}
    >>> _scenario({**iid, "attack": "alie"})
    '5 of 17 clients malicious: alie, iid partitions'
    >>> _scenario({**iid, "attack": "none"})
    'no client malicious, iid partitions'
    """
    count = _num_malicious(config)
    who = f"{count} of {config['num-nodes']} clients malicious: {config['attack']}"
    who = who if count else "no client malicious"
    return f"{who}, {config['partitioner']} partitions"


def _summary(rule: str, runs: Sequence[FinishedRun]) -> RuleSummary:
    evaluated = [[line for line in run.lines if "accuracy" in line] for run in runs]
    rounds = [line["round"] for line in min(evaluated, key=len)]
    values = [
        [line["accuracy"] for line in lines if line["accuracy"] is not None]
        for lines in zip(*evaluated, strict=False)
    ]
    whole = [v if len(v) == len(runs) else [] for v in values]
    kept = [
        line["malicious-kept"]
        for run in runs
        if _num_malicious(run.run.config)
        for line in run.lines
        if line["round"] > 0 and "malicious-kept" in line
    ]
    key = "backdoor-success"
    opened = [lines[-1][key] for lines in evaluated if lines and key in lines[-1]]
    return RuleSummary(
        rule,
        Curve.over_runs(rounds, whole),
        whole[-1] if whole else [],
        statistics.fmean(kept) if kept else None,
        statistics.fmean(opened) if opened else None,
    )


def run_one_by_one(plan: Sweep, engine: Engine, root: Path) -> Iterator[SweepProgress]:
    """Run what the folder does not hold yet, one run after the other, on an engine.

    Yields
    ------
    SweepProgress
        First the runs that the folder holds, then a report several times a second.

    Raises
    ------
    RunFailed
        If the very first run fails before its first round: a mistake in the
        configuration, which would end the other runs as well.
    """
    with exclusive_folder(root):
        saved = plan.saved(root)
        done = sum(one.run.num_rounds for one in saved)
        yield SweepProgress(done, saved)
        anything = bool(saved)
        for run in plan.unfinished(root):
            folder = root / run.name
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("rounds.jsonl", "ended.json"):
                (folder / name).unlink(missing_ok=True)
            written = RunFolder(folder)
            config = {**run.config, "output": str(folder.resolve())}
            began = time.monotonic()
            try:
                nodes = num_nodes_for(config)
                for _ in engine.run(config, nodes, folder / "log.txt"):
                    yield SweepProgress(done + max(len(written.rounds()) - 1, 0), [])
                error = ""
                mark_finished(folder, time.monotonic() - began, "")
            except RunFailed as failure:
                if not anything and not written.rounds():
                    raise
                error = str(failure)
            anything = True
            done += run.num_rounds
            seconds = time.monotonic() - began
            lines = written.rounds()
            yield SweepProgress(done, [FinishedRun(run, lines, seconds, error=error)])
