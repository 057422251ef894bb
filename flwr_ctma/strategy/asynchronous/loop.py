"""Flower's loop over rounds, for strategies that send their messages themselves."""

from collections.abc import Callable
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.compat import log
from flwr_ctma.strategy.wrappers.base import Evaluate

__all__ = ["run_rounds"]


def run_rounds(
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
        The outermost strategy.
    grid : Grid
    arrays : ArrayRecord
        The initial model.
    num_rounds : int
    config : ConfigRecord
        What clients are sent with every message.
    evaluate_fn : callable or None
        Evaluates the model before the first round and after each.
    is_over : callable
        Returns, before each round, whether to end early.

    Returns
    -------
    Result
        With the initial model if no round changed it.
    """
    log(INFO, "Starting %s:", type(strategy).__name__)
    strategy.summary()
    result = Result(arrays=arrays)

    def evaluate(number: int) -> None:
        metrics = evaluate_fn(number, result.arrays) if evaluate_fn else None
        _record(result.evaluate_metrics_serverapp, number, metrics)

    evaluate(0)
    for number in range(1, num_rounds + 1):
        if is_over():
            log(INFO, "Ended before round %d.", number)
            break
        strategy.configure_train(number, result.arrays, config, grid)
        aggregated, metrics = strategy.aggregate_train(number, [])
        result.arrays = result.arrays if aggregated is None else aggregated
        log(INFO, "[ROUND %d/%d] %s", number, num_rounds, metrics)
        _record(result.train_metrics_clientapp, number, metrics)
        evaluate(number)
    return result


def _record(
    history: dict[int, MetricRecord], number: int, metrics: MetricRecord | None
) -> None:
    if metrics is not None:
        history[number] = metrics
