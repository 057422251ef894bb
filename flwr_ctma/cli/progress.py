"""Progress of many runs: a bar on a terminal, a line for each run elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flwr_ctma.cli.screen import Screen
from flwr_ctma.experiments.estimate import format_seconds, time_left

__all__ = ["RunProgress"]


class RunProgress:
    """Show how far all runs together are, and the time left for all of them.

    Parameters
    ----------
    screen : Screen
    num_runs : int
    total : int
        Work of all runs, in rounds or in runs.
    saved_runs : int (default: 0)
        Runs that were finished before.
    saved : int (default: 0)
        Their work.
    """

    def __init__(
        self,
        screen: Screen,
        num_runs: int,
        total: int,
        saved_runs: int = 0,
        saved: int = 0,
    ) -> None:
        self._screen, self._num_runs, self._total = screen, num_runs, total
        self._finished, self._done, self._saved = saved_runs, saved, saved
        self._began = time.monotonic()
        console = screen.console
        self._bar = Progress(
            TextColumn("{task.fields[runs]} runs"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=screen.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=total, completed=saved, runs=self._count
        )

    def __enter__(self) -> Self:
        """Show the bar, and how many runs are not run again."""
        if self._finished:
            finished = f"{self._finished} of {self._num_runs} runs"
            self._screen.print(f"{finished} are in the folder already: skipped.")
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()

    def update(self, done: int) -> None:
        """Show how much of the work is done."""
        self._done = done
        self._bar.update(self._task, completed=done, runs=self._count)

    def finish_run(self, text: str) -> None:
        """Print the line of a finished run."""
        self._finished += 1
        left = ""
        if self._finished < self._num_runs and self._done > self._saved:
            elapsed = time.monotonic() - self._began
            new, total = self._done - self._saved, self._total - self._saved
            left = f", {format_seconds(time_left(elapsed, new, total))} left"
        self._screen.print(f"[{self._count}] {text}{left}")
        self._bar.update(self._task, runs=self._count)

    @property
    def _count(self) -> str:
        return f"{self._finished}/{self._num_runs}"
