"""A grid of runs of one app: planned in a file, resumable, on all cores."""

import itertools
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy

from flwr_ctma.errors import did_you_mean, parameter_error
from flwr_ctma.experiments.app import App, merge_overrides, num_nodes_for
from flwr_ctma.experiments.estimate import (
    ROUNDS_KEY,
    Trial,
    estimate_seconds,
    makespan,
    num_rounds_of,
)
from flwr_ctma.experiments.interposition import fixed_sampling, wrapped_strategies
from flwr_ctma.experiments.names import check_names
from flwr_ctma.experiments.processes import describe
from flwr_ctma.experiments.sweep_results import (
    FinishedRun,
    PlannedRun,
    mark_finished,
    read_finished,
)
from flwr_ctma.experiments.workers import exclusive_folder, single_core_pool
from flwr_ctma.simulation.arrivals import grid_of
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.wrappers.observed import Observed
from flwr_ctma.tracking.run_folder import RunFolder

__all__ = ["Sweep", "SweepProgress", "check_values", "product"]

_TICK = 0.5
_TABLES = ("run-config", "axes", "exclude", "include")
_NAMES = ("aggregator", "attack")
_SCALAR = (bool, int, float, str)

Values = Mapping[str, Any]


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Attributes
    ----------
    rounds : int
        Rounds finished so far, in all runs.
    finished : sequence of FinishedRun
        Runs that ended since the last report.
    """

    rounds: int
    finished: Sequence[FinishedRun]


@dataclass(frozen=True)
class Sweep:
    """All combinations of some values of an app's run-config.

    Parameters
    ----------
    app : App
    runs : sequence of PlannedRun
        In the order in which they start.
    """

    app: App
    runs: Sequence[PlannedRun]

    @classmethod
    def read(cls, file: Path, app: App, *overrides: str) -> "Sweep":
        """Read the plan of a sweep from a TOML file.

        The file has up to four tables. `run-config` holds values for all runs. `axes`
        holds lists of values by key; every combination is a run. `exclude` holds tables
        of values or lists of values; a combination that has them all is left out.
        `include` holds tables of values or lists of values that are runs as well.

        Parameters
        ----------
        file : Path
        app : App
        *overrides : str
            As for `flwr run --run-config`; they replace values of `run-config`.

        Raises
        ------
        ValueError
            For a file that is no such plan, a key that the app does not have, an
            unknown rule or attack, and an override of a key that every run sets. The
            sentence names the file and the key.
        """
        plan = _Plan(file)
        common = plan.scalars("run-config")
        excluded = [point for one in plan.tables("exclude") for point in product(one)]
        points = [
            point
            for point in product(plan.table("axes"))
            if not any(one.items() <= point.items() for one in excluded)
        ]
        points += [point for one in plan.tables("include") for point in product(one)]
        if not points:
            expected = "a TOML file whose `axes` or `include` hold at least one run"
            raise parameter_error("file", expected, str(file))
        for key, value in merge_overrides(*overrides).items():
            if all(key in point for point in points):
                raise parameter_error(
                    "run-config",
                    f"without `{key}`, which the runs set",
                    f"{key}={value}",
                    f"Change `{key}` in {file}.",
                )
        keys = dict.fromkeys(key for point in points for key in point)
        runs = []
        for point in points:
            try:
                config = app.run_config(common, *overrides, point)
                check_values(app, config)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            runs.append(PlannedRun(config, {key: config.get(key) for key in keys}))
        return cls(app, list({run.name: run for run in runs}.values()))

    def run(
        self,
        folder: Path,
        workers: int,
        kind: type[InProcessGrid] = InProcessGrid,
    ) -> Iterator[SweepProgress]:
        """Run everything that the folder does not hold yet.

        Closing the iterator, as an exception does, kills the running runs.

        Yields
        ------
        SweepProgress
            First the runs that the folder holds, then a report every half second. A run
            that fails ends no other run; it is run again the next time.

        Raises
        ------
        ValueError
            If another process is using the folder.
        """
        with exclusive_folder(folder):
            saved = self.saved(folder)
            rounds = sum(one.run.num_rounds for one in saved)
            yield SweepProgress(rounds, saved)
            names = {one.run.name for one in saved}
            left = [run for run in self.runs if run.name not in names]
            if not left:
                return
            commit = _commit(self.app)
            with single_core_pool(workers, folder / "log.txt") as pool:
                futures: dict[Future[FinishedRun], PlannedRun] = {
                    pool.submit(_run, self.app, run, folder, commit, kind): run
                    for run in left
                }
                while futures:
                    done, _ = wait(futures, _TICK, FIRST_COMPLETED)
                    ended = [_result(futures.pop(future), future) for future in done]
                    rounds += sum(one.run.num_rounds for one in ended)
                    active = sum(
                        _count_rounds(folder / run.name)
                        for future, run in futures.items()
                        if future.running()
                    )
                    yield SweepProgress(rounds + active, ended)

    def estimate(
        self, folder: Path, workers: int, kind: type[InProcessGrid] = InProcessGrid
    ) -> float | None:
        """Return the seconds that the unfinished runs take in so many processes.

        If the folder holds finished runs, a round of a client takes as long as in
        these; otherwise some runs are tried. None if nothing is known.
        """
        left = self.unfinished(folder)
        saved = self.saved(folder)
        if not saved:
            return estimate_seconds(self.trials(left, kind), workers)
        spent = sum(one.seconds for one in saved)
        each = spent / sum(one.run.num_client_rounds for one in saved)
        return makespan((each * run.num_client_rounds for run in left), workers)

    def trials(
        self, runs: Sequence[PlannedRun], kind: type[InProcessGrid] = InProcessGrid
    ) -> list[Trial]:
        """Return runs as trials for an estimate; none without a number of rounds."""
        return [
            Trial(
                partial(_try, self.app, run, kind),
                run.num_rounds,
                num_nodes_for(run.config),
            )
            for run in runs
            if num_rounds_of(run.config)
        ]

    def unfinished(self, folder: Path) -> list[PlannedRun]:
        """Return the runs that a folder does not hold yet."""
        names = {one.run.name for one in self.saved(folder)}
        return [run for run in self.runs if run.name not in names]

    def saved(self, folder: Path) -> list[FinishedRun]:
        """Read the finished runs that a folder holds."""
        found = (read_finished(run, folder / run.name) for run in self.runs)
        return [one for one in found if one]


def check_values(app: App, config: Values) -> None:
    """Check the rule, the attack and the number of nodes, then all that the app checks.

    Raises
    ------
    ValueError
        For an unknown rule or attack, a number of nodes below 1, and a value that the
        app refuses.
    """
    rules, attacks = ([config[k]] if k in config else [] for k in _NAMES)
    check_names(app, rules, attacks)
    num_nodes_for(config)
    app.check(config)


class _Plan:
    """The TOML file of a sweep; every mistake names the file and the key."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise parameter_error(
                "file", "a TOML file", str(file), f"{error}."
            ) from error
        for name in self.content:
            if name not in _TABLES:
                remedy = did_you_mean(name, _TABLES)
                raise self._error("table", f"one of {', '.join(_TABLES)}", name, remedy)

    def table(self, name: str) -> Values:
        """Return a table of values and lists of values."""
        return self._checked(name, self.content.get(name, {}))

    def tables(self, name: str) -> list[Values]:
        """Return an array of such tables."""
        found = self.content.get(name, [])
        if not isinstance(found, list):
            expected = f"an array of tables, written `[[{name}]]`"
            raise self._error(name, expected, found)
        return [self._checked(name, one) for one in found]

    def scalars(self, name: str) -> Values:
        """Return a table of single values."""
        found = self.table(name)
        for key, value in found.items():
            if isinstance(value, list):
                remedy = "Lists of values belong into the table `axes`."
                raise self._error(f"{name}.{key}", "a single value", value, remedy)
        return found

    def _checked(self, name: str, table: Any) -> Values:
        if not isinstance(table, dict):
            raise self._error(name, "a table of keys and values", table)
        for key, value in table.items():
            values = value if isinstance(value, list) else [value]
            if not values:
                raise self._error(f"{name}.{key}", "at least one value", value)
            if not all(isinstance(one, _SCALAR) for one in values):
                expected = "a string, number or boolean, or a list of them"
                raise self._error(f"{name}.{key}", expected, value)
        return table

    def _error(
        self, name: str, expected: str, found: object, remedy: str = ""
    ) -> ValueError:
        return ValueError(
            f"{self.file}: {parameter_error(name, expected, found, remedy)}"
        )


def product(axes: Values) -> Iterator[dict[str, Any]]:
    """Combine lists of values and single values; no axes give no combination."""
    if not axes:
        return
    lists = [value if isinstance(value, list) else [value] for value in axes.values()]
    for values in itertools.product(*lists):
        yield dict(zip(axes, values, strict=True))


@cache
def _load(app: App) -> tuple[ServerApp, ClientApp]:
    """Load an app once in each process, so that its data stay loaded, too."""
    return app.load()


def _run(
    app: App, run: PlannedRun, root: Path, commit: str, kind: type[InProcessGrid]
) -> FinishedRun:
    folder = root / run.name
    server_app, client_app = _load(app)
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rounds.jsonl", "config.json", "ended.json"):
        (folder / name).unlink(missing_ok=True)
    config = dict(run.config)
    if "output" in config:
        config["output"] = str(folder.resolve())

    def observe(strategy: Strategy) -> Strategy:
        if (folder / "config.json").exists():  # the app writes its run folder itself
            return strategy
        run_folder = RunFolder(folder)
        run_folder.begin(config)
        return Observed(strategy, run_folder.append)

    grid = grid_of(client_app, num_nodes_for(config), config, kind)
    seed = config.get("seed", 0)
    with (
        fixed_sampling(seed if isinstance(seed, int) else 0),
        wrapped_strategies(observe),
    ):
        server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), config))
    seconds = time.monotonic() - began
    mark_finished(folder, seconds, commit)
    return FinishedRun(run, RunFolder(folder).rounds(), seconds, commit)


def _try(app: App, run: PlannedRun, kind: type[InProcessGrid], rounds: int) -> None:
    """Run for so many rounds, and keep nothing."""
    shorter = PlannedRun({**run.config, ROUNDS_KEY: rounds}, run.point)
    with TemporaryDirectory() as folder:
        _run(app, shorter, Path(folder), "", kind)


def _result(run: PlannedRun, future: Future[FinishedRun]) -> FinishedRun:
    error = future.exception()
    if error:
        return FinishedRun(run, [], error=describe(error))
    return future.result()


def _count_rounds(folder: Path) -> int:
    try:
        return max((folder / "rounds.jsonl").read_bytes().count(b"\n") - 1, 0)
    except FileNotFoundError:
        return 0


def _commit(app: App) -> str:
    """Return the Git commit of an app's folder; empty without Git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(getattr(app, "path", ".")), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return f"{head}+" if git("status", "--porcelain", "-uno") else head
    except FileNotFoundError:
        return ""
