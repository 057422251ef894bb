"""Detectors of a user's own, exclusion by verdict, and appeals, in runs."""

from collections import Counter

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import Checkpointed, RobustStrategy
from flwr_ctma.tracking.detectors import Exclusion

FIRST = 2  # id of the node that has partition 0
app = ClientApp()


@app.train()
def train(message, context):
    by = 1 + int(context.node_config["partition-id"]) / 100
    arrays = [a + by for a in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1})
    content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


class Blame:
    """A detector that holds some nodes to be malicious, until a round."""

    def __init__(self, nodes, until=100):
        self.nodes, self.until = nodes, until
        self.rounds = 0
        self.seen = []

    def judge(self, seen):
        self.rounds += 1
        self.seen.append(seen)
        return dict.fromkeys(self.nodes, self.rounds < self.until)

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state):
        self.rounds = state["rounds"]


class Counting(InProcessGrid):
    """Count the messages to each partition."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = Counter()

    def push_messages(self, messages):
        messages = list(messages)
        self.asked.update(m.metadata.dst_node_id - FIRST for m in messages)
        return super().push_messages(messages)

    def times(self):
        return [self.asked[i] for i in range(len(self.get_node_ids()))]


def run(rounds=6, n=9, f=2, clients=app, folder=None, **settings):
    inside = FedAvg(fraction_evaluate=0.0, min_available_nodes=n)
    strategy = RobustStrategy(inside, num_malicious_nodes=f, **settings)
    grid = Counting(clients, n)
    outer = Checkpointed(strategy, folder) if folder else strategy
    start = ArrayRecord([np.zeros(4)])
    result = outer.start(grid, start, num_rounds=rounds)
    return strategy, grid.times(), result.train_metrics_clientapp


def test_a_detector_sees_each_round_and_names_the_suspects():
    detector = Blame([FIRST + 4])
    _, times, metrics = run(rounds=3, detector=detector)
    assert times == [3] * 9
    assert metrics[3]["nodes-suspected"] == [FIRST + 4]
    assert sorted(detector.seen[0].accepted) == list(range(FIRST, FIRST + 9))
    assert detector.seen[1].predictable and len(detector.seen[1].distances) == 9


def test_distances_are_to_the_update_of_the_round_before():
    """Updates grow by 1 a round: near this round's aggregate, far from the last."""
    growing = ClientApp()

    @growing.train()
    def train_more(message, context):
        reply = train(message, context)
        more = message.content["config"]["server-round"] - 1
        arrays = [a + more for a in reply.content["arrays"].to_numpy_ndarrays()]
        reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    detector = Blame([])
    run(rounds=2, clients=growing, detector=detector)
    first, second = detector.seen
    assert not first.predictable and max(first.distances) < 0.5
    assert second.predictable and min(second.distances) > 1.5


def test_exclusion_by_verdict_leaves_f_as_it_is():
    strategy, times, metrics = run(
        detector=Blame([FIRST, FIRST + 1]), exclusion=Exclusion(by_verdict=True)
    )
    assert times == [1, 1] + [6] * 7
    assert set(metrics[6]["nodes-excluded"]) == {FIRST, FIRST + 1}
    seen = strategy.detector.seen[-1]
    assert len(seen.accepted) == 7 and seen.f == 2


def test_exclusion_for_proofs_lowers_f():
    clients = ByzantineMod("malformed(fault=garbage)", nodes=2).around(app)
    detector = Blame([])
    _, times, _ = run(
        n=5, clients=clients, detector=detector, exclusion=Exclusion(max_rejections=1)
    )
    assert times == [1, 1, 6, 6, 6]
    assert detector.seen[-1].f == 1 and len(detector.seen[-1].accepted) == 3


@pytest.mark.parametrize(("n", "asked"), [(5, 6), (6, 1), (7, 1)])
def test_a_verdict_excludes_nobody_whom_the_round_needs(n, asked):
    """With f = 2 a round needs five replies: a sixth node may be excluded."""
    detector = Blame([FIRST, FIRST + 1])
    _, times, metrics = run(
        n=n, detector=detector, exclusion=Exclusion(by_verdict=True)
    )
    assert times[0] == asked
    assert times[2:] == [6] * (n - 2)
    assert all("nodes-trimmed" in line for line in metrics.values())


def test_no_more_than_f_nodes_are_excluded_by_verdict():
    detector = Blame(range(FIRST, FIRST + 9))
    _, times, _ = run(detector=detector, exclusion=Exclusion(by_verdict=True))
    assert sorted(times) == [1, 1] + [6] * 7


def test_an_appeal_brings_back_a_node_whose_verdict_has_changed():
    detector = Blame([FIRST], until=4)
    exclusion = Exclusion(by_verdict=True, appeal_after=2)
    _, times, metrics = run(rounds=8, detector=detector, exclusion=exclusion)
    out = [r for r in metrics if "nodes-excluded" in metrics[r]]
    # Asked in round 1, out for two, asked in round 4: the verdict is withdrawn.
    assert out == [2, 3]
    assert times == [6] + [8] * 8


def test_an_appeal_of_a_broken_node_fails():
    clients = ByzantineMod("nonfinite", nodes=1).around(app)
    exclusion = Exclusion(max_rejections=2, appeal_after=2)
    _, times, _ = run(rounds=8, clients=clients, exclusion=exclusion)
    assert times == [4] + [8] * 8  # rounds 1, 2, 5, 8


def test_the_ledger_excludes_by_verdict_if_there_is_no_other_detector():
    clients = ByzantineMod("malformed(fault=garbage)", nodes=1).around(app)
    _, times, _ = run(clients=clients, exclusion=Exclusion(by_verdict=True))
    assert times == [1] + [6] * 8


def test_a_resumed_run_keeps_detector_and_exclusion(tmp_path):
    def settings():
        exclusion = Exclusion(by_verdict=True, appeal_after=2)
        return {"detector": Blame([FIRST], until=4), "exclusion": exclusion}

    _, whole, _ = run(rounds=8, folder=tmp_path / "a", **settings())
    _, first, _ = run(rounds=2, folder=tmp_path / "b", **settings())
    strategy, second, _ = run(rounds=8, folder=tmp_path / "b", **settings())
    assert strategy.detector.rounds == 8
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert whole[0] == 6


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"detector": print}, "detector"),
        ({"exclusion": 3}, "exclusion"),
        ({"exclusion": Exclusion(), "max_rejections": 2}, "max_rejections"),
        ({"max_rejections": 0}, "max_rejections"),
        ({"reply_limit": 3}, "reply_limit"),
        ({"constant_keys": "mask"}, "constant_keys"),
    ],
)
def test_settings_of_another_type_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"Parameter `{name}` should be"):
        run(rounds=1, **settings)


def test_an_excluded_suspect_is_no_proof_against_others():
    """Seven nodes, two of them excluded, one silent: four replies outvote no two."""
    clients = ByzantineMod("malformed(fault=silent)", nodes={3}).around(app)
    detector, exclusion = Blame([FIRST, FIRST + 1]), Exclusion(by_verdict=True)
    _, _, metrics = run(
        n=7, rounds=3, clients=clients, detector=detector, exclusion=exclusion
    )
    assert "nodes-trimmed" in metrics[1]
    assert "nodes-trimmed" not in metrics[2]
    assert metrics[2]["replies-accepted"] == 4
