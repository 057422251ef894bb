"""Estimates of the time that many runs take."""

import operator
from functools import partial

import pytest

from flwr_ctma.experiments.estimate import Trial, estimate_seconds
from flwr_ctma.experiments.processes import RunFailed

RUNS, FAILS = partial(operator.truediv, 1), partial(operator.getitem, [])


def test_trials_that_fail_are_left_out():
    seconds = estimate_seconds([Trial(RUNS, 10, 5), Trial(FAILS, 10, 5)], workers=1)
    assert seconds > 0


def test_runs_that_all_fail_are_an_error_with_the_reason():
    with pytest.raises(RunFailed, match="IndexError: list index out of range"):
        estimate_seconds([Trial(FAILS, 10, 5)] * 3, workers=2)


def test_no_trial_is_no_estimate():
    assert estimate_seconds([], workers=2) is None
