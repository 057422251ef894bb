"""Flower's loop over rounds, for strategies that send their messages themselves."""

from collections.abc import Callable
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.compat import log
from flwr_ctma.strategy.wrappers.base import Evaluate

__all__ = ["rounds"]


def rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    num_rounds: int,
    config: ConfigRecord,
    evaluate_fn: Evaluate | None,
    is_over: Callable[[], bool],
) -> Result:
    """Run rounds that consist of `configure_train` and `aggregate_train` alone.

    Parameters
    ----------
    strategy : Strategy
        The outermost.
    arrays : ArrayRecord
        The model to begin with, and to give back if there is no other.
    is_over : callable
        Says, before each round, whether to end early.
    """
    log(INFO, "Starting %s:", type(strategy).__name__)
    strategy.summary()
    result = Result(arrays=arrays)

    def evaluate(number: int) -> None:
        metrics = evaluate_fn(number, result.arrays) if evaluate_fn else None
        _note(result.evaluate_metrics_serverapp, number, metrics)

    evaluate(0)
    for number in range(1, num_rounds + 1):
        if is_over():
            log(INFO, "Ended before round %d.", number)
            break
        strategy.configure_train(number, result.arrays, config, grid)
        arrived, report = strategy.aggregate_train(number, [])
        result.arrays = result.arrays if arrived is None else arrived
        log(INFO, "[ROUND %d/%d] %s", number, num_rounds, report)
        _note(result.train_metrics_clientapp, number, report)
        evaluate(number)
    return result


def _note(
    history: dict[int, MetricRecord], number: int, metrics: MetricRecord | None
) -> None:
    if metrics is not None:
        history[number] = metrics
