"""Detect runs that diverge, and roll them back."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING
from statistics import median_low
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import numbers
from flwr_ctma.messages.schema import BUFFER_KEYS
from flwr_ctma.strategy.wrappers.base import StrategyWrapper, inside, is_asynchronous
from flwr_ctma.strategy.wrappers.run import Hooks
from flwr_ctma.strategy.wrappers.state import restore, state_of

__all__ = ["DivergenceGuard"]


class DivergenceGuard(StrategyWrapper):
    """Detect a run that diverges, report it, and optionally roll it back.

    Round t leads from the model x_t to x_{t+1}. It raises an alarm if::

        x_{t+1} or a loss is not finite
        ‖x_{t+1} − x_t‖ > k · median of the last 10 steps
        loss > median of the last 10 values + k · scale
        more replies are rejected than accepted

    k is `factor`, or three times that while fewer than 5 values are known. The scale of
    a loss is the largest of `|m|` and m − median over all medians m that there were so
    far: a loss that is near zero, or below, may vary as it did when it was high.

    Parameters
    ----------
    strategy : Strategy
        Any strategy that works in rounds.
    rollback : bool (default: False)
        Whether a round with an alarm ends with the model and the strategies' state of
        the last round without one. This takes memory for two copies.
    factor : float (default: 10.0)
        Ratio to the usual that counts as an explosion.
    max_rollbacks : int (default: 3)
        Rollbacks in a row. After so many, the next model is accepted if it is finite,
        and what is usual is learned anew from it.

    Raises
    ------
    ValueError
        If factor is not above 1, if max_rollbacks is below 1, or if the strategy inside
        is asynchronous and should roll back: work on its way cannot be taken back.
    RuntimeError
        In `start`: if all rounds of the run were taken back.

    Notes
    -----
    Losses are all metrics whose names end in "loss": of training, of the clients'
    evaluation and of the server's. The loss of training belongs to the model x_t that
    was sent, so the guard returns to a model only if the round after it was good, too.

    An alarm is a warning in the log, and `diverged = 1` among the round's metrics;
    with `rolled-back-to`, the round that made the restored model.

    Steps and losses of rounds with an alarm count in the medians. So a few odd rounds,
    such as steps of length zero that malicious nodes cause or the warm-up of a learning
    rate, cannot set for good what is usual, and `max_rollbacks` bounds what they cost.

    What nodes did stays in the ledger of `RobustStrategy`, and nodes that it excludes
    stay excluded. Nodes are sampled anew.
    Without `RobustStrategy` inside, one client's lie about its loss is an alarm.

    Configs that strategies inside change in place are restored as well. Changes by
    wrappers outside of the guard stay.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAdam
    >>> from flwr_ctma.strategy import RobustStrategy
    >>> strategy = RobustStrategy(FedAdam(), num_malicious_nodes=3)
    >>> DivergenceGuard(strategy, rollback=True).factor
    10.0
    """

    needs_all_replies = True
    repeatable = False

    def __init__(
        self,
        strategy: Strategy,
        rollback: bool = False,
        factor: float = 10.0,
        max_rollbacks: int = 3,
    ) -> None:
        super().__init__(strategy)
        if not factor > 1:
            raise parameter_error("factor", "above 1", factor)
        if max_rollbacks < 1:
            raise parameter_error("max_rollbacks", "at least 1", max_rollbacks)
        if rollback and is_asynchronous(strategy):
            raise parameter_error(
                "rollback",
                "False around a strategy that waits for nobody",
                rollback,
                "Work on its way cannot be taken back: lower the learning rate.",
            )
        self.rollback = rollback
        self.factor = factor
        self.max_rollbacks = max_rollbacks
        self._forget()

    def _forget(self) -> None:
        """Forget the run before."""
        self._steps = _Series()
        self._losses: dict[str, _Series] = {}
        self._rollbacks = 0
        self._rolled_back = False
        self._good: _Snapshot | None = None
        self._sent_from: _Snapshot | None = None
        self._arrays = ArrayRecord()
        self._configs: dict[str, ConfigRecord] = {}

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        log(INFO, "\t├──> Numerical health:")
        log(INFO, "\t│\t├── Explosion: %g times what is usual", self.factor)
        log(INFO, "\t│\t└── Rolls back: %s", self.rollback)
        super().summary()

    def prepare_grid(self, grid: Grid, num_rounds: int) -> Grid:
        """Forget the run before; a checkpoint is read later."""
        self._forget()
        return grid

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the model that is sent, and the state of the strategies."""
        self._arrays = arrays
        self._configs["train"] = config
        if self._rolled_back:
            self._rolled_back = False
        else:
            self._rollbacks = 0
            if self.rollback:
                here = _Snapshot.of(
                    self.strategy, server_round - 1, arrays, self._configs
                )
                self._good = self._sent_from or here
                self._sent_from = here
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the step, and the loss of the model that was sent."""
        sent = self._arrays
        arrays, metrics = super().aggregate_train(server_round, replies)
        alarms = self._rejections(metrics) + self._explosions("train", metrics)
        finite = True
        if arrays is not None:
            # A record of its own: going back exchanges what the caller holds.
            self._arrays = ArrayRecord(dict(arrays))
            step = _distance(sent, arrays)
            finite = math.isfinite(step)
            alarms += self._strides(step)
        if alarms:
            metrics = MetricRecord() if metrics is None else metrics
            metrics = self._tell(alarms, metrics, finite)
        return None if arrays is None else self._arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the config as it is before the strategies change it."""
        self._configs["evaluate"] = config
        for snapshot in (self._good, self._sent_from):
            if snapshot is not None:
                given = copy.deepcopy(dict(config))
                snapshot.configs.setdefault("evaluate", given)
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Judge the loss that the clients measured."""
        metrics = super().aggregate_evaluate(server_round, replies)
        return metrics and self._tell(self._explosions("evaluate", metrics), metrics)

    def end_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Judge the loss that the server measured."""
        if metrics is not None:
            self._tell(self._explosions("server", metrics), metrics)
        if self._rolled_back and self._good is not None:
            # The evaluation of a round that was taken back has changed the state again.
            self._good.restore(self.strategy, self._arrays, self._configs)

    def end_run(self, result: Result) -> Result:
        """Return the result; raise an error if every round was taken back."""
        if self._rolled_back and self._good is not None and self._good.number == 0:
            raise RuntimeError(
                "All rounds of the run were taken back, and the model is the initial "
                "one. Lower the learning rate, or raise `factor`."
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: what is usual, and the good model."""
        return {
            "steps": vars(self._steps),
            "losses": {k: vars(seen) for k, seen in self._losses.items()},
            "rollbacks": self._rollbacks,
            "rolled-back": self._rolled_back,
            "good": self._good and vars(self._good),
            "sent": self._sent_from and vars(self._sent_from),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._steps = _Series(**state["steps"])
        self._losses = {k: _Series(**seen) for k, seen in state["losses"].items()}
        self._rollbacks = state["rollbacks"]
        self._rolled_back = state["rolled-back"]
        self._good = _Snapshot(**state["good"]) if state["good"] else None
        self._sent_from = _Snapshot(**state["sent"]) if state["sent"] else None

    def _strides(self, step: float) -> list[str]:
        if not math.isfinite(step):
            return ["the model is not finite"]
        if step == 0:  # a round that was skipped
            return []
        usual = self._steps.median
        explodes = step > self._steps.patience(self.factor) * usual
        self._steps.add(step)
        if explodes:
            return [f"a step of length {step:.3g}, where {usual:.3g} is usual"]
        return []

    def _explosions(self, phase: str, metrics: MetricRecord | None) -> list[str]:
        found = []
        for name, loss in (metrics or {}).items():
            if name.endswith("loss") and isinstance(loss, int | float):
                series = self._losses.setdefault(f"{phase} {name}", _Series())
                limit = series.limit(self.factor)
                if not math.isfinite(loss):
                    found.append(f"{name} of {loss}")
                    continue
                series.add(loss)
                if loss > limit:
                    found.append(f"{name} of {loss:.3g}, more than {limit:.3g}")
        return found

    def _rejections(self, metrics: MetricRecord | None) -> list[str]:
        counts: Mapping[str, Any] = metrics or {}
        rejected = counts.get("replies-rejected", 0)
        accepted = counts.get("replies-accepted", 0)
        if rejected > accepted:
            return [f"{rejected} replies rejected and {accepted} accepted"]
        return []

    def _tell(
        self, alarms: list[str], metrics: MetricRecord, finite: bool = True
    ) -> MetricRecord:
        """Report alarms, and roll back if that is asked for."""
        if not alarms:
            return metrics
        metrics["diverged"] = 1
        log(WARNING, "The run diverges: %s.", "; ".join(alarms))
        if self._good is None:
            log(WARNING, "\t> Lower the learning rate, or set `rollback`.")
            return metrics
        if finite and not self._rolled_back and self._rollbacks >= self.max_rollbacks:
            log(
                WARNING,
                "\t> Accepting the model after %d rollbacks in a row: from now on this "
                "is usual. If the run diverges indeed, lower the learning rate.",
                self._rollbacks,
            )
            self._steps = _Series()
            self._losses = {}
            self._rollbacks = 0
            return metrics
        self._rollbacks += not self._rolled_back
        self._rolled_back = True
        self._good.restore(self.strategy, self._arrays, self._configs)
        self._sent_from = self._good
        metrics["rolled-back-to"] = self._good.number
        log(
            WARNING,
            "\t> Going back to the model of round %d. If that happens again and again, "
            "lower the learning rate.",
            self._good.number,
        )
        return metrics


_WINDOW = 10
_ENOUGH = 5


@dataclass
class _Series:
    """The last values of a quantity, and the levels that their median had.

    The median is the lower one of an even number: half the values cannot raise it.
    """

    values: list[float] = field(default_factory=list)
    highest: float = -math.inf  # of all medians
    largest: float = 0.0  # |median|, of all medians

    @property
    def median(self) -> float:
        return median_low(self.values) if self.values else math.inf

    def patience(self, factor: float) -> float:
        return factor if len(self.values) >= _ENOUGH else 3 * factor

    def add(self, value: float) -> None:
        self.values = [*self.values, float(value)][-_WINDOW:]
        self.highest = max(self.highest, self.median)
        self.largest = max(self.largest, abs(self.median))

    def limit(self, factor: float) -> float:
        """Return the value above which a loss explodes."""
        scale = max(self.largest, self.highest - self.median) if self.values else 0.0
        return self.median + self.patience(factor) * scale if scale else math.inf


@dataclass
class _Snapshot:
    """A model, and the state of the strategies with it."""

    number: int
    arrays: ArrayRecord
    states: list[dict[str, Any]] = field(default_factory=list)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        strategy: Strategy,
        number: int,
        arrays: ArrayRecord,
        configs: Mapping[str, ConfigRecord],
    ) -> "_Snapshot":
        states = [
            {k: v for k, v in state_of(part).items() if k not in _evidence(part)}
            for part in inside(strategy)
        ]
        model = ArrayRecord(dict(arrays))
        plain = {phase: dict(config) for phase, config in configs.items()}
        return cls(number, model, *copy.deepcopy((states, plain)))

    def restore(
        self,
        strategy: Strategy,
        arrays: ArrayRecord,
        configs: Mapping[str, ConfigRecord],
    ) -> None:
        """Restore the state, and the model and the configs in place."""
        for part, saved in zip(inside(strategy), self.states, strict=True):
            kept = {k: v for k, v in state_of(part).items() if k in _evidence(part)}
            restore(part, {**copy.deepcopy(saved), **kept}, exact=True)
        arrays.update(self.arrays)
        for phase, config in configs.items():
            saved_config = copy.deepcopy(self.configs.get(phase, dict(config)))
            config.clear()
            config.update(saved_config)


def _evidence(part: Strategy) -> frozenset[str]:
    """Return the entries of a state that are no part of the model."""
    return part.evidence if isinstance(part, Hooks) else frozenset()


def _distance(sent: ArrayRecord, arrays: ArrayRecord) -> float:
    """‖arrays - sent‖ over all parameters; infinite if anything is not finite."""
    square = 0.0
    for key, array in arrays.items():
        new = numbers(array)
        if not np.isfinite(new).all():
            return math.inf
        if new.dtype.kind == "f" and key.rpartition(".")[2] not in BUFFER_KEYS:
            step = np.subtract(new, numbers(sent[key]), dtype=np.float64)
            square += float(np.vdot(step, step))
    return math.sqrt(square)
