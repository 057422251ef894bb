"""A strategy around a strategy."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.strategy.refusals import prepared

__all__ = ["Around"]


class Around(Strategy):
    """Do as the strategy inside does; derive from it to do more.

    Parameters
    ----------
    strategy : Strategy
        The one inside.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> class Timid(Around):
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
        *args: Any,
        **kwargs: Any,
    ) -> Result:
        """Run the rounds on the grid that the strategies inside ask for."""
        grid = prepared(self.strategy, grid, num_rounds)
        return super().start(grid, initial_arrays, num_rounds, *args, **kwargs)

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
