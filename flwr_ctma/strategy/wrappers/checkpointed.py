"""Runs that resume after the last round that they finished."""

import copy
import random
from collections.abc import Sequence
from logging import INFO
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.bounded_grid import stateful_grid
from flwr_ctma.strategy.wrappers.base import StrategyWrapper
from flwr_ctma.strategy.wrappers.run import Run
from flwr_ctma.strategy.wrappers.state import attributes, changes, restore
from flwr_ctma.tracking.checkpoint import latest, newest, write

__all__ = ["Checkpointed"]


class Checkpointed(StrategyWrapper):
    """Save a run after every round, and resume it at the next one.

    Before the next round begins, these are on disk: the model, the state of all
    strategies in the chain, the configs that they send, Python's and NumPy's global
    random state, and the history. A run that is started again with the same folder
    continues after its last finished round and ends as it would have ended.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    folder : str | Path
        The folder of this run alone.

    Raises
    ------
    ValueError
        At the first save, for an attribute of a strategy that cannot be saved; at the
        start, for a folder with another run: of another model or other strategies; at a
        save, if another run has saved in the folder meanwhile.

    Notes
    -----
    The state of a strategy is what its `state_dict` returns, and `load_state_dict`
    restores it. A strategy without these is saved by its attributes: those that are
    plain data and have changed since the run began. Numbers, text, bytes, arrays,
    records, random generators and containers of these are plain data. Functions and
    loggers are settings, as long as they stay the same objects.

    The model to start with may be the initial one of the run, or one that the run made:
    only its names, shapes and dtypes are checked, and the saved model replaces it.

    A config entry that differs from that of the first start replaces the saved one.

    A strategy inside with a `start` of its own counts the rounds of each process from
    1; what it assigns to its attributes before the first round of a resumed run is
    replaced by the saved state.

    On an `InProcessGrid`, also within an `OnDiskGrid` or a `GracePeriodGrid`, the
    `context.state` of all clients and the messages on their way are saved as well. In
    Flower's own runtimes they are not: clients start a new run.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = Checkpointed(FedAvg(), "runs/weekend/checkpoints")
    """

    end_order = 2
    needs_run = True
    repeatable = False

    def __init__(self, strategy: Strategy, folder: str | Path) -> None:
        super().__init__(strategy)
        self.folder = Path(folder)
        self._history = Result()
        self._initial: list[tuple[str, str, tuple[int, ...]]] = []
        self._begun: list[dict[str, Any]] = []
        self._configs: dict[str, ConfigRecord] = {}
        self._saved_configs: dict[str, ConfigRecord] = {}
        self._first_configs: dict[str, dict[str, Any]] = {}
        self._to_restore: dict[str, Any] | None = None
        self._saved = 0
        self._newest: int | None = None

    def summary(self) -> None:
        """Log the folder and the finished rounds, then the settings inside."""
        log(INFO, "\t├──> Checkpoints:")
        log(INFO, "\t│\t├── Folder: %s", self.folder)
        finished = self._run.finished if self._run else 0
        log(INFO, "\t│\t└── Finished rounds: %d", finished)
        super().summary()

    def begin_run(self, run: Run) -> None:
        """Restore the last checkpoint, if there is one."""
        self._history, self._saved = Result(), 0
        self._configs, self._saved_configs, self._first_configs = {}, {}, {}
        self._begun = [attributes(layer) for layer in self._layers(run)]
        # The first model: Flower's averages change dtypes, and bagging changes shapes.
        self._initial = _shapes(run.arrays)
        found, self._newest = latest(self.folder), newest(self.folder)
        if found is None:
            return
        state = found.state
        self._check(run, state)
        self._initial = state["initial"]
        self._restore_strategies(run, state)
        grid = stateful_grid(run.grid)
        if grid is not None:
            grid.load_state_dict(state["grid"])
        for name, attribute in _HISTORY.items():
            setattr(self._history, attribute, dict(state["history"][name]))
        self._history.arrays = state["arrays"]
        self._to_restore, self._saved = state, found.number
        measured = self._history.evaluate_metrics_serverapp.get(found.number)
        run.resume(found.number, state["arrays"], measured)
        log(INFO, "Resuming after round %d, from %s", found.number, self.folder)

    def begin_phase(self, phase: str, server_round: int, config: ConfigRecord) -> None:
        """Restore the config, and once more all that the first round depends on."""
        state = self._to_restore
        if state is not None and phase == "train" and self._run is not None:
            # A `start` inside may have assigned attributes and drawn numbers.
            self._restore_strategies(self._run, state)
            random.setstate(state["random"])
            np.random.set_state(state["numpy"])  # noqa: NPY002, the global state
            self._to_restore = None
            self._first_configs = state["first-configs"]
            self._saved_configs = dict(state["configs"])
        if phase == "train" and server_round <= self._saved:
            raise parameter_error(
                "strategy",
                "a `start` that runs one loop over rounds",
                f"round {server_round} again",
                "A resumed run would not know in which loop it is: give each loop a "
                "`Checkpointed` of its own, with a folder of its own.",
            )
        first = self._first_configs.setdefault(phase, copy.deepcopy(dict(config)))
        saved = self._saved_configs.pop(phase, None)
        if saved is not None:
            given = {k: v for k, v in config.items() if first.get(k) != v}
            config.clear()
            config.update({**saved, **given})
        self._configs[phase] = config

    def aggregated(
        self, phase: str, replies: Sequence[Message], metrics: MetricRecord | None
    ) -> None:
        """Keep the metrics of the clients."""
        if metrics is not None and self._run is not None:
            history = getattr(self._history, _HISTORY[phase])
            history[self._run.number] = metrics

    def end_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Keep the metrics of the server, and save all."""
        run, history = self._run, self._history
        if run is None:
            return
        if metrics is not None:
            history.evaluate_metrics_serverapp[server_round] = metrics
        grid = stateful_grid(run.grid)
        layers = zip(self._layers(run), self._begun, strict=True)
        self._check_alone()
        self._saved = self._newest = server_round
        write(
            self.folder,
            server_round,
            {
                "initial": self._initial,
                "arrays": run.arrays,
                "strategies": [
                    {"kind": type(layer).__name__, "state": changes(layer, begun)}
                    for layer, begun in layers
                ],
                "configs": self._configs,
                "first-configs": self._first_configs,
                "random": random.getstate(),
                "numpy": np.random.get_state(),  # noqa: NPY002, the global state
                "grid": None if grid is None else grid.state_dict(),
                "history": {k: getattr(history, v) for k, v in _HISTORY.items()},
            },
        )

    def end_run(self, result: Result) -> Result:
        """Return the history of the whole run."""
        if self._run is not None:
            self._history.arrays = self._run.arrays
        return self._history

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: checkpoints hold the state of the others."""
        return {}

    def _layers(self, run: Run) -> list[Strategy]:
        return [layer for layer in run.layers if layer is not self]

    def _restore_strategies(self, run: Run, state: dict[str, Any]) -> None:
        for layer, saved in zip(self._layers(run), state["strategies"], strict=True):
            restore(layer, saved["state"])

    def _check_alone(self) -> None:
        """Raise a ValueError if somebody else has saved a round in the folder."""
        found = newest(self.folder)
        if found not in (None, self._newest):
            raise parameter_error(
                "folder",
                "that of one run",
                str(self.folder),
                f"Another run has saved round {found} there meanwhile: stop it, or "
                "start in another folder.",
            )

    def _check(self, run: Run, state: dict[str, Any]) -> None:
        """Raise a ValueError if a checkpoint is of another run."""
        kinds = [type(layer).__name__ for layer in self._layers(run)]
        if [saved["kind"] for saved in state["strategies"]] != kinds:
            raise parameter_error(
                "strategy",
                f"{[saved['kind'] for saved in state['strategies']]}, as in the run "
                f"that {self.folder} holds",
                kinds,
                "Resume with the same strategies, or start in another folder.",
            )
        grid = stateful_grid(run.grid)
        entries = None if grid is None else grid.state_dict().keys()
        if (state["grid"] and state["grid"].keys()) != entries:
            raise parameter_error(
                "grid",
                f"of the same kind as that of the run in {self.folder}",
                type(run.grid).__name__,
                "Resume in the runtime of the run: in one process, on a virtual clock, "
                "or in Flower's own.",
            )
        # FedAvg makes floats of integer buffers: a model that it returned is no other.
        if self._initial not in (state["initial"], _shapes(state["arrays"])):
            raise parameter_error(
                "initial_arrays",
                f"of the model that {self.folder} holds",
                "another model",
                "Resume with the same model, or start in another folder.",
            )


_HISTORY = {
    "train": "train_metrics_clientapp",
    "evaluate": "evaluate_metrics_clientapp",
    "server": "evaluate_metrics_serverapp",
}


def _shapes(arrays: ArrayRecord) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(key, array.dtype, tuple(array.shape)) for key, array in arrays.items()]
