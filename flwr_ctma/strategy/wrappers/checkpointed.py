"""Runs that go on where they were killed."""

import random
from collections.abc import Iterable
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.wrappers.base import (
    Evaluate,
    StrategyWrapper,
    close_round_of,
    inside,
    loop_of,
    prepared,
)
from flwr_ctma.strategy.wrappers.state import restore, state_of
from flwr_ctma.tracking.checkpoint import latest, write

__all__ = ["Checkpointed"]


class Checkpointed(StrategyWrapper):
    """Save a run after every round, and resume it at the next one.

    Model, state of the strategies inside, the random state that nodes are sampled from
    and history are on disk before a round counts as finished. A run that is started
    again with the same folder goes on after its last finished round and ends as it
    would have ended.

    Parameters
    ----------
    strategy : Strategy
        Any strategy. Of Flower's own, the attributes that hold arrays are its state:
        moments of the server optimisers, the current model. Ours say what theirs is, by
        `state_dict` and `load_state_dict`.
    folder : str | Path
        Of this run alone.

    Notes
    -----
    On an `InProcessGrid` what clients keep in `context.state`, and what is on its way,
    is saved as well. In Flower's own runtimes it is not: clients start a new run.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = Checkpointed(FedAvg(), "runs/weekend/checkpoints")
    """

    def __init__(self, strategy: Strategy, folder: str | Path) -> None:
        super().__init__(strategy)
        self.folder = Path(folder)
        self._finished = 0
        self._history = Result()

    def summary(self) -> None:
        """Log the folder and the round to go on from, then the strategy inside."""
        log(INFO, "\t├──> Checkpoints:")
        log(INFO, "\t│\t├── Folder: %s", self.folder)
        log(INFO, "\t│\t└── Finished rounds: %d", self._finished)
        super().summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Run what is left of the rounds; see `flwr.serverapp.strategy.Strategy`.

        Flower's loop counts the rounds of this call from 1; the strategies inside, the
        clients, `evaluate_fn` and the result see the numbers that go on.

        Raises
        ------
        ValueError
            If the folder holds another run: of another model or another strategy.
        CheckpointError
            If a round cannot be saved.
        """
        # Prepared for all rounds, not for those left: the f of a sample depends on
        # them, and a resumed run is to be the same.
        self._grid = grid = prepared(self.strategy, grid, num_rounds)
        arrays = self._resume(initial_arrays)
        first = self._finished == 0

        def close_round(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number == 0 and not first:
                return None
            number += self._offset
            metrics = evaluate_fn(number, arrays) if evaluate_fn else None
            if metrics is not None:
                self._history.evaluate_metrics_serverapp[number] = metrics
            self._history.arrays = arrays
            close_round_of(self.strategy, number, metrics)
            self._save(number)
            return metrics

        self._offset = self._finished
        left = num_rounds - self._finished
        if left > 0:
            loop_of(self.strategy)(
                self,
                grid,
                arrays,
                left,
                timeout,
                train_config,
                evaluate_config,
                close_round,
            )
        return self._history

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, with the number of the round in the whole run."""
        number = server_round + self._offset
        return super().configure_train(number, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, and keep the metrics."""
        number = server_round + self._offset
        arrays, metrics = super().aggregate_train(number, replies)
        if metrics is not None:
            self._history.train_metrics_clientapp[number] = metrics
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, with the number of the round in the whole run."""
        number = server_round + self._offset
        return super().configure_evaluate(number, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate, and keep the metrics."""
        number = server_round + self._offset
        metrics = super().aggregate_evaluate(number, replies)
        if metrics is not None:
            self._history.evaluate_metrics_clientapp[number] = metrics
        return metrics

    _offset = 0
    _grid: Any

    def _save(self, number: int) -> None:
        history = self._history
        write(
            self.folder,
            number,
            {
                "arrays": history.arrays,
                "strategies": [
                    {"kind": type(part).__name__, "state": state_of(part)}
                    for part in inside(self.strategy)
                ],
                "random": random.getstate(),
                "grid": self._grid.state_dict() if _is_simulated(self._grid) else None,
                "train": _plain(history.train_metrics_clientapp),
                "evaluate": _plain(history.evaluate_metrics_clientapp),
                "server": _plain(history.evaluate_metrics_serverapp),
            },
        )
        self._finished = number

    def _resume(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        found = latest(self.folder)
        if found is None:
            return initial_arrays
        state = found.state
        strategies = list(inside(self.strategy))
        kinds = [type(part).__name__ for part in strategies]
        if [saved["kind"] for saved in state["strategies"]] != kinds:
            raise parameter_error(
                "strategy",
                f"{[saved['kind'] for saved in state['strategies']]}, as in the run "
                f"that {self.folder} holds",
                kinds,
                "Resume with the same strategies, or start in another folder.",
            )
        if (state["grid"] is not None) != _is_simulated(self._grid):
            raise parameter_error(
                "grid",
                f"of the kind that the run in {self.folder} was on",
                type(self._grid).__name__,
                "Resume where it ran, in one process or in Flower's own runtimes.",
            )
        if _frame(state["arrays"]) != _frame(initial_arrays):
            raise parameter_error(
                "initial_arrays",
                f"of the model that {self.folder} holds",
                "another model",
                "Resume with the same model, or start in another folder.",
            )
        for part, saved in zip(strategies, state["strategies"], strict=True):
            restore(part, saved["state"])
        random.setstate(state["random"])
        if state["grid"] is not None:
            self._grid.load_state_dict(state["grid"])
        for name in ("train", "evaluate", "server"):
            rounds = {k: MetricRecord(v) for k, v in state[name].items()}
            setattr(self._history, _HISTORY[name], rounds)
        self._history.arrays = state["arrays"]
        self._finished = found.number
        log(INFO, "Resuming after round %d, from %s", found.number, self.folder)
        arrays: ArrayRecord = state["arrays"]
        return arrays


_HISTORY = {
    "train": "train_metrics_clientapp",
    "evaluate": "evaluate_metrics_clientapp",
    "server": "evaluate_metrics_serverapp",
}


def _is_simulated(grid: Any) -> bool:
    """Whether the nodes are in this process, and what they keep can be saved."""
    return hasattr(grid, "state_dict")


def _plain(rounds: dict[int, MetricRecord]) -> dict[int, dict[str, Any]]:
    return {number: dict(record.items()) for number, record in rounds.items()}


def _frame(arrays: ArrayRecord) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(key, array.dtype, tuple(array.shape)) for key, array in arrays.items()]
