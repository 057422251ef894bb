"""Callbacks for `flwr_ctma.strategy.Observed`: a progress line, and trackers.

`numbers` converts a line to the numbers by name that trackers take. For Weights &
Biases and MLflow, that is all:

    Observed(strategy, lambda line: wandb.log(numbers(line), step=line["round"]))
    Observed(strategy, lambda line: mlflow.log_metrics(numbers(line), line["round"]))
"""

import math
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Progress", "TensorBoard", "numbers"]


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line, and the lengths of its lists of nodes.

    Examples
    --------
    >>> numbers({"round": 3, "accuracy": 0.9, "rejected": [7, 9], "loss": None})
    {'accuracy': 0.9, 'rejected': 2.0}
    """
    values = {
        name: len(value) if isinstance(value, list) else value
        for name, value in line.items()
        if name != "round"
    }
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class Progress:
    """Print a line for each round: accuracy, loss, rejected nodes, time left.

    Parameters
    ----------
    num_rounds : int
        Number of rounds of the run.
    file : TextIO | None (default: None)
        The stream; standard error if None.

    Examples
    --------
    >>> show = Progress(30, sys.stdout)
    >>> line = {"round": 2, "accuracy": 0.873, "seconds": 3.0}
    >>> show({**line, "rejected": [7], "missing": [], "suspected": [7, 9]})
    Round 2 of 30 | accuracy 0.873 | rejected 1 | suspected 7, 9 | 0:01:24 left
    """

    def __init__(self, num_rounds: int, file: TextIO | None = None) -> None:
        self.num_rounds = num_rounds
        self.file = file
        self._seconds = 0.0
        self._rounds = 0

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Print the line of a round."""
        done = line["round"]
        parts = [f"Round {done} of {self.num_rounds}"]
        parts += [f"{k} {line[k]:.4g}" for k in ("accuracy", "loss") if _shown(line, k)]
        parts += [f"{k} {len(line[k])}" for k in ("rejected", "missing") if line.get(k)]
        if line.get("suspected"):
            parts.append(f"suspected {', '.join(map(str, line['suspected']))}")
        if done > 0:
            self._seconds += line["seconds"]
            self._rounds += 1
            left = (self.num_rounds - done) * self._seconds / self._rounds
            parts.append(f"{timedelta(seconds=round(left))} left")
        print(*parts, sep=" | ", file=self.file or sys.stderr, flush=True)


class TensorBoard:
    """Write lines as scalars for TensorBoard; needs the extra `tensorboard`.

    Parameters
    ----------
    folder : str | Path
        The folder for `tensorboard --logdir`.

    Raises
    ------
    ImportError
        If torch or tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Write the line of a round, and flush."""
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, line["round"])
        self._writer.flush()


def _shown(line: Mapping[str, Any], name: str) -> bool:
    value = line.get(name)
    return isinstance(value, int | float) and math.isfinite(value)
