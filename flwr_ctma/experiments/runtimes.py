"""Ways to run a Flower app from a script: in Flower's simulation, and in one process.

Each runs the app's own ServerApp and ClientApp in separate processes and writes their
output to a log file. `flwr run` exits with 0 even if the run failed; these raise an
error with the reason.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from flwr_ctma.experiments.processes import (
    RunFailed,
    last_run,
    spell_config,
    superlink,
    watch,
)

__all__ = ["Batched", "Engine", "InProcess", "Ray"]


class Engine(ABC):
    """A way to run a Flower app; a context manager that stops all that it started.

    Parameters
    ----------
    app : Path
        Folder of the app, with its `pyproject.toml`.
    """

    def __init__(self, app: Path) -> None:
        self.app = app
        self._shared = ExitStack()

    def __enter__(self) -> Self:
        """Start the processes that the runs share."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the processes that the runs share."""
        self._shared.close()

    @abstractmethod
    def run(
        self, config: Mapping[str, Any], num_nodes: int, log: Path
    ) -> Iterator[None]:
        """Run the app once; yield several times a second while it runs.

        Parameters
        ----------
        config : Mapping[str, Any]
            Values that replace those in the app's `pyproject.toml`.
        num_nodes : int
            Number of clients.
        log : Path
            File for the output of the run.

        Raises
        ------
        RunFailed
            If the run did not finish.
        """


class InProcess(Engine):
    """All clients in one process, one after the other, without Ray."""

    options: ClassVar[Sequence[str]] = ()

    def run(
        self, config: Mapping[str, Any], num_nodes: int, log: Path
    ) -> Iterator[None]:
        """Run `flwr-ctma simulate`."""
        command = [sys.executable, "-m", "flwr_ctma", "simulate", str(self.app)]
        command += ["--num-nodes", str(num_nodes), "--run-config", spell_config(config)]
        command += self.options
        if (yield from watch(command, log)):
            lines = log.read_text(encoding="utf-8", errors="replace").strip()
            raise RunFailed(lines.rpartition("\n")[2])


class Batched(InProcess):
    """All clients in one process; the clients of a round are computed together."""

    options = ("--batched",)


class Ray(Engine):
    """Flower's simulation, `flwr run`, on a SuperLink that the runs share.

    The SuperLink has a free port and its own state folder, so that runs and settings of
    the user's Flower installation stay untouched. Each client has one CPU core.
    """

    def __enter__(self) -> Self:
        """Start the SuperLink."""
        self._env, _ = self._shared.enter_context(superlink("--simulation"))
        return self

    def run(
        self, config: Mapping[str, Any], num_nodes: int, log: Path
    ) -> Iterator[None]:
        """Run `flwr run`, then ask the SuperLink for the status of the run."""
        federation = {"num-supernodes": num_nodes, "client-resources-num-cpus": 1}
        command = ["flwr", "run", str(self.app), "--stream"]
        command += ["--run-config", spell_config(config)]
        command += ["--federation-config", spell_config(federation)]
        if code := (yield from watch(command, log, self._env)):
            raise RunFailed(f"`flwr run` exited with code {code}. See {log}.")
        status, details = last_run(self._env)
        if status != "finished:completed":
            reason = (details or status).strip().removesuffix(".")
            raise RunFailed(f"{reason}. See {log}.")
