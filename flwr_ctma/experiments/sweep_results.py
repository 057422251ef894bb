"""What came of a sweep: its runs, a table of their rounds, and their scores."""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr_ctma.experiments.tournament import Match, MatchResult, Scores, scores
from flwr_ctma.tracking.run_folder import RunFolder

__all__ = ["Ended", "Run", "evaluated", "final_scores", "held", "write_rounds"]

_APART = ("attack", "seed", "num-malicious-nodes")


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Parameters
    ----------
    config : Mapping[str, Any]
        Its whole run-config, but for `output`.
    point : Mapping[str, Any]
        Where on the grid it is: the keys that the sweep varies.
    """

    config: Mapping[str, Any]
    point: Mapping[str, Any]

    @cached_property
    def name(self) -> str:
        """Name of its folder: where it is on the grid, and a digest of the whole.

        Examples
        --------
        >>> Run({"seed": 1, "lr": 0.1}, {"aggregator": "ctma(gm)", "seed": 1}).name
        'ctma-gm_1_2ccbe2'
        """
        words = [
            re.sub(r"[^\w.=]+", "-", str(v)).strip("-") for v in self.point.values()
        ]
        whole = json.dumps(dict(self.config), sort_keys=True)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:6]
        return "_".join([*words, digest])[-200:]

    @property
    def num_rounds(self) -> int:
        """How many rounds it takes."""
        return int(self.config["num-server-rounds"])


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes
    ----------
    run : Run
    lines : list of dict
        Its rounds in which the model was evaluated.
    seconds : float
        Of the whole run.
    commit : str
        Of the code, with a plus sign if it was changed since; empty if not known.
    why : str
        Why it failed, if it did.
    """

    run: Run
    lines: list[dict[str, Any]]
    seconds: float = 0.0
    commit: str = ""
    why: str = ""

    @property
    def accuracy(self) -> float | None:
        """Accuracy after the last round."""
        return self.lines[-1]["accuracy"] if self.lines and not self.why else None


def held(run: Run, folder: Path) -> Ended | None:
    """Read a run that has ended from its folder."""
    try:
        ending = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Ended(run, evaluated(folder), ending["seconds"], ending["commit"])


def evaluated(folder: Path) -> list[dict[str, Any]]:
    """Read the rounds of a run in which the model was evaluated."""
    return [line for line in RunFolder(folder).rounds() if "accuracy" in line]


def write_rounds(path: Path, ended: Iterable[Ended]) -> None:
    """Write a table with one row for each evaluated round of each run."""
    rows = [
        {
            **one.run.point,
            "seed": one.run.config.get("seed"),
            "commit": one.commit,
            **{
                key: value for key, value in line.items() if not isinstance(value, list)
            },
        }
        for one in ended
        for line in one.lines
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def final_scores(ended: Sequence[Ended]) -> Scores:
    """Average final accuracy over seeds: malicious clients → rule → attack → value.

    What else the sweep varies stands behind the rule; None where nothing was run.
    """
    varied = {
        key
        for key in {key for one in ended for key in one.run.point}
        if key not in (*_APART, "aggregator")
        and len({str(one.run.point[key]) for one in ended}) > 1
    }
    outcomes = {
        _match(one.run, sorted(varied)): MatchResult(one.accuracy, one.seconds, one.why)
        for one in ended
    }
    attacks = dict.fromkeys(match.attack for match in outcomes)
    return {
        f: {
            rule: {attack: values.get(attack) for attack in attacks}
            for rule, values in by_rule.items()
        }
        for f, by_rule in scores(outcomes).items()
    }


def _match(run: Run, varied: Iterable[str]) -> Match:
    words = [str(run.config.get("aggregator", ""))]
    words += [f"{key}={run.point[key]}" for key in varied]
    return Match(
        " ".join(words),
        str(run.config.get("attack", "none")),
        int(run.config.get("num-malicious-nodes", 0)),
        int(run.config.get("seed", 0)),
    )
