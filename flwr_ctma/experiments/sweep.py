"""A grid of runs of one app: planned in a file, resumable, on all cores."""

import itertools
import json
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.attacks import parse_attack
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.sweep_results import Ended, Run, evaluated, held
from flwr_ctma.experiments.workers import alone_in, one_core_each
from flwr_ctma.simulation.arrivals import grid_of
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = ["State", "Sweep"]

_TICK = 0.5
_TABLES = ("run-config", "axes", "exclude", "include")

Values = Mapping[str, Any]


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
            raise parameter_error(
                "file", "a TOML file", str(file), str(error)
            ) from error
        if strange := [name for name in plan if name not in _TABLES]:
            raise parameter_error("table", f"one of {', '.join(_TABLES)}", strange[0])
        flower_app = FlowerApp(app)
        excluded = [p for values in plan.get("exclude", []) for p in _product(values)]
        points = [
            point
            for point in _product(plan.get("axes", {}))
            if not any(one.items() <= point.items() for one in excluded)
        ]
        points += [p for values in plan.get("include", []) for p in _product(values)]
        if not points:
            raise parameter_error(
                "file", "one whose `axes` or `include` hold a run", str(file)
            )
        keys = dict.fromkeys(key for point in points for key in point)
        runs = []
        for point in points:
            config = flower_app.run_config(
                plan.get("run-config", {}), *overrides, point
            )
            _check(config)
            runs.append(Run(config, {key: config[key] for key in keys}))
        return cls(app, list({run.name: run for run in runs}.values()))

    def run_match(
        self,
        folder: Path,
        workers: int,
        kind: type[InProcessGrid] = InProcessGrid,
    ) -> Iterator[State]:
        """Run what the folder does not hold yet, and tell every now and then how far.

        Runs that it holds are in the first state. One that fails ends no other, and is
        run again the next time.

        Raises
        ------
        ValueError
            If another process is at work in the folder.
        """
        with alone_in(folder):
            yield from self._play(folder, workers, kind)

    def _play(
        self, folder: Path, workers: int, kind: type[InProcessGrid]
    ) -> Iterator[State]:
        before = [one for run in self.runs if (one := held(run, folder / run.name))]
        rounds = sum(one.run.num_rounds for one in before)
        yield State(rounds, before)
        names = {one.run.name for one in before}
        left = [run for run in self.runs if run.name not in names]
        commit = _commit(self.app)
        with one_core_each(workers, folder / "log.txt") as pool:
            futures: dict[Future[Ended], Run] = {
                pool.submit(_run, self.app, run, folder / run.name, commit, kind): run
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


def _product(axes: Values) -> Iterator[dict[str, Any]]:
    """Combine lists of values, or single ones; what is empty combines to nothing."""
    if not axes:
        return
    lists = [value if isinstance(value, list) else [value] for value in axes.values()]
    for values in itertools.product(*lists):
        yield dict(zip(axes, values, strict=True))


def _check(config: Values) -> None:
    if "attack" in config:
        parse_attack(config["attack"])
    if config.get("aggregator", "fedavg") != "fedavg":
        parse_aggregator(config["aggregator"])


@cache
def _app(path: Path) -> tuple[Any, Any]:
    """Load an app once in a process, so that its data stay loaded, too."""
    return FlowerApp(path).load()


def _run(
    app: Path, run: Run, folder: Path, commit: str, kind: type[InProcessGrid]
) -> Ended:
    server_app, client_app = _app(app)
    began = time.monotonic()
    config = {**run.config, "output": str(folder.resolve())}
    grid = grid_of(client_app, int(config["num-nodes"]), config, kind)
    server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), config))
    seconds = time.monotonic() - began
    ending = json.dumps({"seconds": seconds, "commit": commit}) + "\n"
    (folder / "ended.json").write_text(ending, encoding="utf-8")
    return Ended(run, evaluated(folder), seconds, commit)


def _result(run: Run, future: Future[Ended]) -> Ended:
    error = future.exception()
    if error:
        return Ended(run, [], why=f"{type(error).__name__}: {error}")
    return future.result()


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
