"""A strategy around a strategy."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

__all__ = [
    "Evaluate",
    "StrategyWrapper",
    "close_round_of",
    "inside",
    "is_asynchronous",
    "loop_of",
    "prepared",
    "setting",
]

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class StrategyWrapper(Strategy):
    """Do as the strategy inside does; derive from it to do more.

    Parameters
    ----------
    strategy : Strategy
        The one inside.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> class Timid(StrategyWrapper):
    ...     def configure_evaluate(self, server_round, arrays, config, grid):
    ...         return []
    >>> Timid(FedAvg()).strategy.fraction_train
    1.0
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def summary(self) -> None:
        """Let the strategy inside tell its settings."""
        self.strategy.summary()

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
        """Run the rounds on the grid that the strategies inside ask for."""

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(number, arrays) if evaluate_fn else None
            close_round_of(self, number, metrics)
            return metrics

        return loop_of(self.strategy)(
            self,
            prepared(self.strategy, grid, num_rounds),
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            evaluate if _listens(self) else evaluate_fn,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside configure the round."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy inside aggregate the round."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside configure the evaluation."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the strategy inside aggregate the evaluation."""
        return self.strategy.aggregate_evaluate(server_round, replies)


def inside(strategy: Any) -> Iterator[Any]:
    """Give a strategy, the one it wraps, the one that one wraps.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> [type(s).__name__ for s in inside(FedAvg())]
    ['FedAvg']
    """
    while isinstance(strategy, Strategy):
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def prepared(strategy: Strategy, grid: Grid, num_rounds: int) -> Grid:
    """Give the grid that a strategy, or what it wraps, asks to run its rounds on.

    For wrappers: Flower's loop calls the outermost strategy's `start` alone.
    """
    for part in inside(strategy):
        if hasattr(part, "prepare"):
            grid = part.prepare(grid, num_rounds)
    return grid


def setting(strategy: Strategy, name: str, default: Any) -> Any:
    """Find a setting of a strategy, or of what it wraps."""
    for part in inside(strategy):
        if hasattr(part, name):
            return getattr(part, name)
    return default


def is_asynchronous(strategy: Strategy) -> bool:
    """Tell whether a strategy, or what it wraps, has a loop of its own for rounds."""
    return setting(strategy, "loop", None) is not None


def close_round_of(
    strategy: Strategy, server_round: int, metrics: MetricRecord | None
) -> None:
    """Tell a strategy and those inside that a round is over, the innermost first.

    Each that has a `close_round` is told what the server measured, or None.
    """
    for part in reversed([*inside(strategy)]):
        if hasattr(part, "close_round"):
            part.close_round(server_round, metrics)


def loop_of(strategy: Strategy) -> Callable[..., Result]:
    """Give what runs the rounds: Flower's loop, or that of the strategy inside.

    It is called with the outermost strategy, then as `Strategy.start` is.
    """
    loop: Callable[..., Result] = setting(strategy, "loop", Strategy.start)
    return loop


def _listens(strategy: Strategy) -> bool:
    return any(hasattr(part, "close_round") for part in inside(strategy))
