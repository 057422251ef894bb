"""Ways to run a Flower app from a script: Ray-backed, and in one process.

All run the app's own ServerApp and ClientApp in processes of their own and write what
these print to a log file. Unlike `flwr run`, whose exit code is 0 in any case, they say
when a run has failed, and why.
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
    """Something that runs a Flower app; a context manager that cleans up after itself.

    Parameters
    ----------
    app : Path
        Folder of the app: the one with its `pyproject.toml`.
    """

    def __init__(self, app: Path) -> None:
        self.app = app
        self._shared = ExitStack()

    def __enter__(self) -> Self:
        """Start what the runs share."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self._shared.close()

    @abstractmethod
    def run(
        self, config: Mapping[str, Any], num_nodes: int, log: Path
    ) -> Iterator[None]:
        """Run the app once, yielding every now and then while it runs.

        Parameters
        ----------
        config : Mapping[str, Any]
            What differs from the run-config in the app's `pyproject.toml`.
        num_nodes : int
            Number of clients.
        log : Path
            File for everything that the run prints.

        Raises
        ------
        RunFailed
            If the run did not finish.
        """


class InProcess(Engine):
    """All clients in one process, one after the other: no start-up, no Ray."""

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
    """All clients in one process, those of a round computed together."""

    options = ("--batched",)


class Ray(Engine):
    """Flower's simulation, `flwr run`, on a SuperLink that lives as long as the engine.

    The SuperLink has a free port and a state folder of its own: runs and settings of
    the user's own Flower are neither seen nor touched. A client has one CPU core.
    """

    def __enter__(self) -> Self:
        """Start the SuperLink."""
        self._env, _ = self._shared.enter_context(superlink("--simulation"))
        return self

    def run(
        self, config: Mapping[str, Any], num_nodes: int, log: Path
    ) -> Iterator[None]:
        """Run `flwr run`, then ask how the run ended."""
        federation = {"num-supernodes": num_nodes, "client-resources-num-cpus": 1}
        command = ["flwr", "run", str(self.app), "--stream"]
        command += ["--run-config", spell_config(config)]
        command += ["--federation-config", spell_config(federation)]
        if code := (yield from watch(command, log, self._env)):
            raise RunFailed(f"`flwr run` ended with code {code}; see {log}")
        status, details = last_run(self._env)
        if status != "finished:completed":
            raise RunFailed(details or status)
