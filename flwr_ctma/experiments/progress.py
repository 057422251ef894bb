"""Progress of runs: bars on a terminal, lines elsewhere."""

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flwr_ctma.experiments.comparison import Job, Rounds

__all__ = ["Watcher"]

_LINES = 5


class Watcher:
    """Show how far runs are, and how accurate.

    Parameters
    ----------
    console : Console
        Where to show it.
    plan : Sequence[Job]
        The runs to come.
    num_rounds : int
        Rounds of each.
    """

    def __init__(self, console: Console, plan: Sequence[Job], num_rounds: int) -> None:
        self._console = console
        self._plan = plan
        self._num_rounds = num_rounds
        self._seen: dict[Job, int] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[Job, TaskID] = {}

    def __enter__(self) -> Self:
        """Begin to show."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""
        self._bars.stop()

    def see(self, job: Job, rounds: Rounds) -> None:
        """Take note of the rounds that a run has finished."""
        new = job not in self._seen
        if not new and len(rounds) == self._seen[job]:
            return
        self._seen[job] = len(rounds)
        done = rounds[-1]["round"] if rounds else 0
        state = _state(rounds)
        name = f"{job.aggregator}, {job.scenario}, seed {job.seed}"
        if self._console.is_terminal:
            if new:
                self._tasks[job] = self._bars.add_task(
                    name, total=self._num_rounds, state=state
                )
            self._bars.update(self._tasks[job], completed=done, state=state)
        elif new or done % max(self._num_rounds // _LINES, 1) == 0:
            number = list(self._plan).index(job) + 1
            self._console.print(
                f"[{number}/{len(self._plan)}] {name}: round {done} of "
                f"{self._num_rounds}, {state}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _state(rounds: Rounds) -> str:
    """Say how accurate the model is, and how many clients are out, if any."""
    if not rounds:
        return "starting"
    known = [line["accuracy"] for line in rounds if line.get("accuracy") is not None]
    parts = [f"accuracy {known[-1]:.1%}"] if known else []
    out = ("rejected", "missing", "suspected")
    parts += [f"{key} {len(rounds[-1][key])}" for key in out if rounds[-1].get(key)]
    return ", ".join(parts)
