"""Detectors and exclusion without rounds: the same protocol, with the same bounds."""

from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.strategy import AnyTimeSGD, AsyncRobustStrategy, Checkpointed
from flwr_ctma.tracking.detectors import Exclusion
from tests.strategy.test_async_rounds import MODEL, NODES, app, start


class Trimmed:
    """Suspects nodes that had no weight in two rounds."""

    def __init__(self):
        self.rounds = Counter()

    def judge(self, seen):
        self.rounds.update(seen.trimmed)
        return {node: count >= 2 for node, count in self.rounds.items()}

    def state_dict(self):
        return dict(self.rounds)

    def load_state_dict(self, state):
        self.rounds = Counter(state)


def grid(**faults):
    return ArrivalGrid(app(**faults), NODES, FixedDurations((1.0,) * NODES))


def run(grid, rounds=6, **settings):
    strategy, result = start(grid, rounds=rounds, **settings)
    history = result.train_metrics_clientapp
    excluded = [history[t].get("nodes-excluded", []) for t in sorted(history)]
    return strategy, history, excluded


def test_nodes_are_excluded_by_rejection_and_their_replies_end():
    here = grid(parameter_error=[1])
    broken = here.get_node_ids()[1]
    strategy, history, excluded = run(here, exclusion=Exclusion(max_rejections=2))
    assert excluded == [[], [], [broken], [broken], [broken], [broken]]
    assert strategy.ledger[broken].rejected == {"not-finite": 2}
    assert all(broken not in history[t]["nodes-asked"] for t in range(3, 7))


def test_nodes_are_excluded_by_the_verdict_of_a_detector_of_ones_own():
    here = grid(liars=[2])
    liar = here.get_node_ids()[2]
    strategy, history, excluded = run(
        here, detector=Trimmed(), exclusion=Exclusion(by_verdict=True)
    )
    first = excluded.index([liar])
    assert first > 0 and excluded[first:] == [[liar]] * (6 - first)
    assert history[first + 1]["nodes-suspected"] == [liar]
    assert liar not in strategy.clients.clients


def test_node_that_appeals_gets_work_again():
    exclusion = Exclusion(max_rejections=1, appeal_after=2)
    _, _, excluded = run(grid(parameter_error=[1]), rounds=7, exclusion=exclusion)
    assert [len(nodes) for nodes in excluded] == [0, 1, 1, 0, 1, 1, 0]


def test_no_more_than_f_are_excluded_and_none_whom_a_majority_needs():
    exclusion = {"exclusion": Exclusion(max_rejections=1)}
    _, _, excluded = run(grid(parameter_error=[1, 2]), f=1, **exclusion)
    assert max(map(len, excluded)) == 1
    settings = {"detector": Trimmed(), "exclusion": Exclusion(by_verdict=True)}
    strategy, _, excluded = run(grid(liars=[1]), f=3, **settings)
    assert strategy.exclusion.nodes and not any(excluded)


def test_verdicts_and_exclusions_are_in_checkpoints(tmp_path):
    def go(rounds, folder):
        strategy = AsyncRobustStrategy(
            AnyTimeSGD(0.1, "fixed(gamma=1)"),
            num_malicious_nodes=1,
            detector=Trimmed(),
            exclusion=Exclusion(by_verdict=True),
        )
        outer = Checkpointed(strategy, folder)
        initial = ArrayRecord({"x": Array(MODEL)})
        result = outer.start(grid(liars=[2]), initial, rounds, timeout=1e6)
        return strategy, result.arrays["x"].numpy()

    go(4, tmp_path / "a")
    resumed, model = go(7, tmp_path / "a")
    straight, same = go(7, tmp_path / "b")
    np.testing.assert_array_equal(model, same)
    assert resumed.exclusion.nodes == straight.exclusion.nodes != []
    assert resumed.detector.rounds == straight.detector.rounds


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"detector": 3}, "detector"),
        ({"exclusion": 3}, "exclusion"),
        ({"memory": 1.0}, "memory"),
        ({"memory": 0.9, "aggregator": "cwmed"}, "aggregator"),
    ],
)
def test_wrong_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=f"Parameter `{named}` should be"):
        AsyncRobustStrategy(AnyTimeSGD(0.1), num_malicious_nodes=1, **settings)
