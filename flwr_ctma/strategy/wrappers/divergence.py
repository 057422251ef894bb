"""Runs that diverge: noticed, and taken back."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING
from statistics import median
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import numbers
from flwr_ctma.messages.schema import BUFFER_KEYS
from flwr_ctma.strategy.wrappers.base import StrategyWrapper, inside, is_asynchronous
from flwr_ctma.strategy.wrappers.state import restore, state_of

__all__ = ["DivergenceGuard"]


class DivergenceGuard(StrategyWrapper):
    """Notice that a run diverges, say so, and go back by option.

    A round t, from the model x_t to x_{t+1}, is alarming if::

        x_{t+1} is not finite, or a loss is not
        ‖x_{t+1} - x_t‖ > factor · median of all steps that were not alarming
        loss > lowest loss + factor · max(|first loss|, first loss - lowest loss)
        more replies are rejected than accepted

    Parameters
    ----------
    strategy : Strategy
        Any strategy that works in rounds.
    rollback : bool (default: False)
        Whether a round that is alarming ends with the model and the strategies' state
        of the last round before it that was not. That takes memory for two copies.
    factor : float (default: 10.0)
        What counts as an explosion.

    Raises
    ------
    ValueError
        If factor is not above 1, or the strategy inside is asynchronous and should roll
        back: work that is on its way cannot be taken back.

    Notes
    -----
    Losses are all metrics whose names end in "loss": of training, of the clients'
    evaluation and of the server's. The loss of training belongs to the model x_t that
    was sent; so a model is only gone back to if the round after it was good as well.

    An alarm is a warning in the log, and `diverged = 1` among the round's metrics;
    with `rolled-back-to`, the round that made the model gone back to.

    What nodes did stays in the ledger of `RobustStrategy`, and nodes are sampled anew.
    Without `RobustStrategy` inside, one client's lie about its loss is an alarm.

    Only `Observed` and `Checkpointed` belong outside of it.

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
        self, strategy: Strategy, rollback: bool = False, factor: float = 10.0
    ) -> None:
        super().__init__(strategy)
        if not factor > 1:
            raise parameter_error("factor", "above 1", factor)
        if rollback and is_asynchronous(strategy):
            raise parameter_error(
                "rollback",
                "False around a strategy that waits for nobody",
                rollback,
                "Work on its way cannot be taken back: lower the learning rate.",
            )
        self.rollback = rollback
        self.factor = factor
        self._steps: list[float] = []
        self._losses: dict[str, _Losses] = {}
        self._alarmed = False
        self._good: _Snapshot | None = None
        self._sent_from: _Snapshot | None = None
        self._arrays = ArrayRecord()
        self._config = ConfigRecord()

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        log(INFO, "\t├──> Numerical health:")
        log(INFO, "\t│\t├── Explosion: %g times what is usual", self.factor)
        log(INFO, "\t│\t└── Rolls back: %s", self.rollback)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent, and the state from which it is."""
        self._arrays = arrays
        if self.rollback and not (self._alarmed and self._good):
            here = _Snapshot.of(self.strategy, server_round - 1, arrays, config)
            self._good = self._sent_from or here
            self._sent_from = here
        self._alarmed = False
        self._config = config
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the step, and the loss of the model that was sent."""
        sent = self._arrays
        arrays, metrics = super().aggregate_train(server_round, replies)
        alarms = self._rejections(metrics) + self._explosions("train", metrics)
        if arrays is not None:
            # A record of its own: going back exchanges what the caller holds.
            self._arrays = ArrayRecord(dict(arrays))
            alarms += self._strides(_distance(sent, arrays))
        if alarms:
            metrics = self._tell(alarms, MetricRecord() if metrics is None else metrics)
        return None if arrays is None else self._arrays, metrics

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

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs: what is usual, and where to go back to."""
        return {
            "steps": self._steps,
            "losses": {k: vars(seen) for k, seen in self._losses.items()},
            "alarmed": self._alarmed,
            "good": self._good and vars(self._good),
            "sent": self._sent_from and vars(self._sent_from),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._steps = [*state["steps"]]
        self._losses = {k: _Losses(**seen) for k, seen in state["losses"].items()}
        self._alarmed = state["alarmed"]
        self._good = _Snapshot(**state["good"]) if state["good"] else None
        self._sent_from = _Snapshot(**state["sent"]) if state["sent"] else None

    def _strides(self, step: float) -> list[str]:
        usual = median(self._steps) if self._steps else math.inf
        if not math.isfinite(step):
            return ["the model is not finite"]
        if step > self.factor * usual:
            return [f"a step of length {step:.3g}, where {usual:.3g} is usual"]
        if step > 0:  # a round that was skipped makes none
            self._steps.append(step)
        return []

    def _explosions(self, phase: str, metrics: MetricRecord | None) -> list[str]:
        found = []
        for name, loss in (metrics or {}).items():
            if name.endswith("loss") and isinstance(loss, int | float):
                losses = self._losses.setdefault(f"{phase} {name}", _Losses())
                limit = losses.limit(self.factor)
                if loss <= limit and math.isfinite(loss):
                    losses.add(loss)
                else:
                    found.append(f"{name} of {loss:.3g}, more than {limit:.3g}")
        return found

    def _rejections(self, metrics: MetricRecord | None) -> list[str]:
        counts: Mapping[str, Any] = metrics or {}
        rejected = counts.get("replies-rejected", 0)
        accepted = counts.get("replies-accepted", 0)
        if rejected > accepted:
            return [f"{rejected} replies rejected and {accepted} accepted"]
        return []

    def _tell(self, alarms: list[str], metrics: MetricRecord) -> MetricRecord:
        """Report alarms, and go back if that is asked for."""
        if not alarms:
            return metrics
        self._alarmed = True
        metrics["diverged"] = 1
        log(WARNING, "The run diverges: %s.", "; ".join(alarms))
        if self._good is None:
            log(WARNING, "\t> Lower the learning rate, or set `rollback`.")
            return metrics
        self._good.restore(self.strategy, self._arrays, self._config)
        self._sent_from = self._good
        metrics["rolled-back-to"] = self._good.number
        log(
            WARNING,
            "\t> Going back to the model of round %d. If that happens again and again, "
            "lower the learning rate.",
            self._good.number,
        )
        return metrics


@dataclass
class _Losses:
    """What a loss was like."""

    first: float | None = None
    lowest: float = math.inf

    def add(self, loss: float) -> None:
        self.first = loss if self.first is None else self.first
        self.lowest = min(self.lowest, loss)

    def limit(self, factor: float) -> float:
        if self.first is None:
            return math.inf
        scale = max(abs(self.first), self.first - self.lowest)
        return self.lowest + factor * scale if scale else math.inf


@dataclass
class _Snapshot:
    """A model, and the state of the strategies that are to go on from it."""

    number: int
    arrays: ArrayRecord
    states: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, strategy: Strategy, number: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> "_Snapshot":
        states = [_forgetting(state_of(part)) for part in inside(strategy)]
        model = ArrayRecord(dict(arrays))
        return cls(number, model, copy.deepcopy(states), dict(config))

    def restore(
        self, strategy: Strategy, arrays: ArrayRecord, config: ConfigRecord
    ) -> None:
        """Exchange state and model for these, the model in place."""
        for part, saved in zip(inside(strategy), self.states, strict=True):
            kept = {k: v for k, v in state_of(part).items() if k in _REMEMBERED}
            restore(part, {**copy.deepcopy(saved), **kept}, exact=True)
        arrays.update(self.arrays)
        config.clear()
        config.update(self.config)


# What nodes did in the rounds that are taken back: evidence, and no part of the model.
_REMEMBERED = {"ledger"}


def _forgetting(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k not in _REMEMBERED}


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
