"""A grid of runs of one app: planned in a file, resumable, on all cores."""

import csv
import hashlib
import itertools
import json
import re
import subprocess
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.attacks import parse_attack
from flwr_ctma.errors import wrong
from flwr_ctma.flower_app import FlowerApp
from flwr_ctma.runs import RunFolder
from flwr_ctma.simulation import InProcessGrid
from flwr_ctma.tournament import Match, Outcome, Scores, scores
from flwr_ctma.workers import one_core_each

__all__ = ["Ended", "Run", "State", "Sweep", "final_scores", "write_rounds"]

_TICK = 0.5
_TABLES = ("run-config", "axes", "exclude", "include")
_APART = ("attack", "seed", "num-malicious-nodes")

Values = Mapping[str, Any]


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

    config: Values
    point: Values

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


@dataclass(frozen=True)
class State:
    """How far a sweep is: rounds done, and the runs that ended since the last state."""

    rounds: int
    ended: Sequence[Ended]


@dataclass(frozen=True)
class Sweep:
    """All combinations of some values of an app's run-config.

    Parameters
    ----------
    app : Path
        Folder of the app.
    runs : Sequence[Run]
        In the order in which they start.
    """

    app: Path
    runs: Sequence[Run]

    @classmethod
    def read(cls, file: Path, app: Path, *overrides: str) -> "Sweep":
        """Plan what a TOML file describes.

        Its tables are `run-config`, values of all runs; `axes`, lists of values by key,
        all combinations of which are runs; `exclude`, tables of values (or lists of
        them): a combination that has them is left out; `include`, tables of values (or
        lists of them) that are runs as well.

        Parameters
        ----------
        file : Path
        app : Path
            Folder of the app.
        *overrides : str
            As for `flwr run --run-config`, in place of the file's `run-config`.

        Raises
        ------
        ValueError
            For a file that is none, a key that the app does not have, and a rule or an
            attack that is none.
        """
        try:
            plan = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise wrong("file", "a TOML file", str(file), str(error)) from error
        if strange := [name for name in plan if name not in _TABLES]:
            raise wrong("table", f"one of {', '.join(_TABLES)}", strange[0])
        flower_app = FlowerApp(app)
        axes = plan.get("axes", {})
        points = [
            point
            for point in _product(axes)
            if not any(_fits(point, values) for values in plan.get("exclude", []))
        ]
        points += [p for values in plan.get("include", []) for p in _product(values)]
        keys = dict.fromkeys(key for point in points for key in point)
        runs = []
        for point in points:
            config = flower_app.run_config(
                plan.get("run-config", {}), *overrides, point
            )
            _check(config)
            runs.append(Run(config, {key: config[key] for key in keys}))
        return cls(app, list({run.name: run for run in runs}.values()))

    def play(self, folder: Path, workers: int) -> Iterator[State]:
        """Run what the folder does not hold yet, and tell every now and then how far.

        Runs that it holds are in the first state. One that fails ends no other, and is
        run again the next time.
        """
        held = [one for run in self.runs if (one := _held(run, folder / run.name))]
        yield State(sum(e.run.num_rounds for e in held), held)
        names = {ended.run.name for ended in held}
        left = [run for run in self.runs if run.name not in names]
        commit = _commit(self.app)
        rounds = sum(ended.run.num_rounds for ended in held)
        with one_core_each(workers, folder / "log.txt") as pool:
            futures: dict[Future[Ended], Run] = {
                pool.submit(_run, self.app, run, folder / run.name, commit): run
                for run in left
            }
            while futures:
                done, _ = wait(futures, _TICK, FIRST_COMPLETED)
                ended = [_result(futures.pop(future), future) for future in done]
                rounds += sum(one.run.num_rounds for one in ended)
                active = sum(
                    _count(folder / run.name)
                    for future, run in futures.items()
                    if future.running()
                )
                yield State(rounds + active, ended)


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
        _match(one.run, sorted(varied)): Outcome(one.accuracy, one.seconds, one.why)
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


def _product(axes: Values) -> Iterator[dict[str, Any]]:
    lists = [value if isinstance(value, list) else [value] for value in axes.values()]
    for values in itertools.product(*lists):
        yield dict(zip(axes, values, strict=True))


def _fits(point: Values, values: Values) -> bool:
    return any(_product(values)) and any(
        all(point.get(key) == value for key, value in one.items())
        for one in _product(values)
    )


def _check(config: Values) -> None:
    if "attack" in config:
        parse_attack(config["attack"])
    if config.get("aggregator", "fedavg") != "fedavg":
        parse_aggregator(config["aggregator"])


@cache
def _app(path: Path) -> tuple[Any, Any]:
    """Load an app once in a process, so that its data stay loaded, too."""
    return FlowerApp(path).load()


def _run(app: Path, run: Run, folder: Path, commit: str) -> Ended:
    server_app, client_app = _app(app)
    began = time.monotonic()
    config = {**run.config, "output": str(folder.resolve())}
    grid = InProcessGrid(client_app, int(config["num-nodes"]), config)
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), config))
    seconds = time.monotonic() - began
    ending = json.dumps({"seconds": seconds, "commit": commit}) + "\n"
    (folder / "ended.json").write_text(ending, encoding="utf-8")
    return Ended(run, _evaluated(folder), seconds, commit)


def _result(run: Run, future: Future[Ended]) -> Ended:
    error = future.exception()
    if error:
        return Ended(run, [], why=f"{type(error).__name__}: {error}")
    return future.result()


def _held(run: Run, folder: Path) -> Ended | None:
    try:
        ending = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Ended(run, _evaluated(folder), ending["seconds"], ending["commit"])


def _evaluated(folder: Path) -> list[dict[str, Any]]:
    return [line for line in RunFolder(folder).rounds() if "accuracy" in line]


def _count(folder: Path) -> int:
    try:
        return max((folder / "rounds.jsonl").read_bytes().count(b"\n") - 1, 0)
    except FileNotFoundError:
        return 0


def _commit(app: Path) -> str:
    """Name the commit that a folder is at; empty where git does not know."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(app), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return f"{head}+" if git("status", "--porcelain", "-uno") else head
    except FileNotFoundError:
        return ""
