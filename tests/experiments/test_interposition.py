"""Strategies are wrapped where an app starts them."""

import pytest
from flwr.serverapp.strategy import FedAvg, Strategy

from flwr_ctma.experiments.interposition import wrapped_strategies
from flwr_ctma.strategy.wrappers.base import StrategyWrapper


class OwnLoop(FedAvg):
    """A strategy with its own loop, as in Flower's `advanced-pytorch` example."""

    def start(self, *args, **kwargs):
        return "own loop", args


class Recorded(StrategyWrapper):
    """Runs the loop of the strategy inside, as a wrapper should."""

    def start(self, *args, **kwargs):
        return "wrapped", self.strategy.start(*args, **kwargs)


def test_strategy_with_its_own_loop_is_wrapped_and_its_loop_runs():
    with wrapped_strategies(Recorded) as started:
        result = OwnLoop().start("grid")
    assert result == ("wrapped", ("own loop", ("grid",)))
    assert started == ["OwnLoop"]
    assert OwnLoop().start("grid") == ("own loop", ("grid",))  # as before


def test_start_is_restored_after_an_error():
    original = Strategy.start
    with pytest.raises(ZeroDivisionError), wrapped_strategies(lambda _: 1 / 0):
        OwnLoop().start("grid")
    assert Strategy.start is original
    assert OwnLoop().start()[0] == "own loop"


def test_every_start_of_an_app_is_wrapped():
    with wrapped_strategies(Recorded) as started:
        assert [OwnLoop().start()[0] for _ in range(2)] == ["wrapped"] * 2
    assert len(started) == 2
