"""AttackedStrategy: colluders see the honest updates, and answer on the server."""

import logging
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian
from flwr.simulation import run_simulation

from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import ALIE, IPM, Fang, OptimalALIE, OptimalIPM, SignFlip
from flwr_ctma.attacks.collusion import Colluders
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import AnyTimeSGD, AsyncRobustStrategy, Checkpointed
from flwr_ctma.strategy.robust import RobustStrategy
from flwr_ctma.strategy.wrappers.attacked import AttackedStrategy

START = {
    "w": np.full((2, 3), 10.0, np.float32),
    "steps": np.array(7),
    "b": np.full(2, 20.0, np.float64),
}


SEARCHES = ["adaptive", "optimalipm", "optimalalie", "pga", "scm", "trimevasion"]


def model():
    return ArrayRecord({key: Array(value) for key, value in START.items()})


def app(mods=()):
    """Partition i adds i + 1 to every float of the model, and i + 1 to the steps."""
    client_app = ClientApp(mods=list(mods))

    @client_app.train()
    def train(message, context):
        by = int(context.node_config["partition-id"]) + 1
        arrays = {
            key: Array(np.asarray(array.numpy() + by, array.numpy().dtype))
            for key, array in message.content["arrays"].items()
        }
        metrics = {"num-examples": 1, "partition": by - 1}
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return client_app


class Recorder(FedAvg):
    """FedAvg that keeps what it was given, by partition, and leaves the model alone."""

    def __init__(self, **settings):
        super().__init__(fraction_evaluate=0.0, **settings)
        self.rounds = []

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.rounds.append(
            {r.content["metrics"]["partition"]: r for r in replies if r.has_content()}
        )
        return None, None

    def updates(self, server_round=1):
        """What each partition adds to b[0] in the end."""
        return {
            partition: float(reply.content["arrays"]["b"].numpy()[0] - 20)
            for partition, reply in sorted(self.rounds[server_round - 1].items())
        }


def run(attack, nodes=None, num_nodes=5, rounds=1, mods=(), seed=0, **settings):
    recorder = Recorder(**settings)
    strategy = AttackedStrategy(recorder, attack, nodes, seed)
    strategy.start(InProcessGrid(app(mods), num_nodes), model(), num_rounds=rounds)
    return recorder


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        # The honest add 3, 4 and 5, the malicious would add 1 and 2.
        (IPM(epsilon=0.5), -2.0),
        (ALIE(z=1.0), 4 - np.sqrt(2 / 3)),
        ("mimic(client=1)", 4.0),
        ("blind(ipm(epsilon=0.5))", -0.75),
        ("blind(alie(z=1))", 1.0),
    ],
)
def test_malicious_replies_are_replaced_and_no_others(attack, expected):
    recorder = run(attack, nodes=2)
    found = recorder.updates()
    assert found == pytest.approx({0: expected, 1: expected, 2: 3, 3: 4, 4: 5})
    reply = recorder.rounds[0][1].content
    for key, start in START.items():
        values = reply["arrays"][key].numpy()
        assert values.dtype == start.dtype
        assert values.shape == start.shape
    np.testing.assert_allclose(reply["arrays"]["w"].numpy(), 10 + expected, rtol=1e-6)
    assert reply["arrays"]["steps"].numpy() == 9  # integers are the client's own
    assert dict(reply["metrics"]) == {"num-examples": 1, "partition": 1}
    assert reply.keys() == {"arrays", "metrics"}


def test_fedavg_averages_what_the_colluders_send():
    strategy = AttackedStrategy(
        FedAvg(fraction_evaluate=0.0), "ipm(epsilon=0.5)", num_malicious_nodes=2
    )
    result = strategy.start(InProcessGrid(app(), 5), model(), num_rounds=2)
    # (3 + 4 + 5 − 2 − 2)/5 in every round
    np.testing.assert_allclose(result.arrays["b"].numpy(), 20 + 2 * 8 / 5)


@pytest.mark.parametrize("attack", ["signflip", "none", SignFlip()])
def test_what_a_client_can_do_alone_is_left_to_clients(attack):
    assert run(attack, nodes=2).updates() == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}


def test_schedule():
    recorder = run("during(ipm(epsilon=1), start=2, stop=3)", nodes=2, rounds=3)
    assert [recorder.updates(r)[0] for r in (1, 2, 3)] == [1, -4, 1]


def test_marks_decide_where_no_number_does():
    """The same attack on both sides: the mod knows partitions, the server the rows."""
    attack = "then(signflip, ipm(epsilon=1), start=2)"
    recorder = run(attack, rounds=2, mods=[ByzantineMod(attack, nodes={1, 3})])
    assert recorder.updates(1) == {0: 1, 1: -2, 2: 3, 3: -4, 4: 5}
    assert recorder.updates(2) == {0: 1, 1: -3, 2: 3, 3: -3, 4: 5}
    assert recorder.rounds[1][1].content.keys() == {"arrays", "metrics"}


def test_mark_without_a_server_that_lets_colluders_act_is_an_error():
    recorder = Recorder()
    grid = InProcessGrid(app([ByzantineMod("alie", nodes=2)]), 5)
    recorder.start(grid, model(), num_rounds=1)
    assert recorder.updates() == {2: 3, 3: 4, 4: 5}


def test_server_says_when_nobody_is_marked(caplog):
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        assert run("alie").updates() == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "no reply is marked as malicious" in caplog.text


def test_malicious_nodes_stay_malicious_when_few_are_sampled():
    recorder = run(
        "ipm(epsilon=1)",
        nodes=3,
        num_nodes=10,
        rounds=12,
        fraction_train=0.5,
        min_train_nodes=5,
    )
    lying = set()
    for server_round in range(1, 13):
        updates = recorder.updates(server_round)
        honest = [by for partition, by in updates.items() if partition >= 3]
        for partition, by in updates.items():
            if partition < 3:
                lying.add(partition)
                assert by == pytest.approx(-np.mean(honest))
            else:
                assert by == partition + 1
    assert lying == {0, 1, 2}


def test_nodes_that_appear_later_are_honest_once_there_are_enough():
    strategy = AttackedStrategy(FedAvg(), IPM(), num_malicious_nodes=2)
    for nodes, malicious in [([9], {9}), ([9, 4, 7], {9, 4}), ([1, 9, 4], {9, 4})]:
        strategy.colluders.recruit(nodes)
        assert strategy.malicious_nodes == malicious


def test_chance_is_fixed_by_seed_and_round():
    def drawn(seed, server_round):
        recorder = run("fang", nodes=2, rounds=2, seed=seed)
        return [recorder.updates(server_round)[i] for i in (0, 1)]

    assert drawn(0, 1) == drawn(0, 1)
    assert AttackedStrategy(FedAvg(), "alie", 2).colluders.seed == 0  # as documented
    assert len({*drawn(0, 1), *drawn(0, 2), *drawn(1, 1)}) == 6


@pytest.mark.parametrize(
    "fault", ["wrong-shape", "missing-key", "garbage", "error", "silent", "string"]
)
def test_malformed_replies_are_not_seen_and_pass(fault):
    mods = [ByzantineMod(f"malformed(fault={fault})", nodes={4})]
    recorder = run("ipm(epsilon=1)", nodes=2, mods=mods)
    assert recorder.rounds[0][0].content["arrays"]["b"].numpy()[0] == 20 - 3.5
    assert (4 in recorder.rounds[0]) == (fault not in ("error", "silent"))


def test_without_honest_clients_nothing_happens():
    assert run(ALIE(), nodes=5).updates() == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}


class Averaging(Recorder):
    """FedAvg that keeps what it was given and averages it."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        super().aggregate_train(server_round, replies)
        return FedAvg.aggregate_train(self, server_round, replies)


def test_poisonedfl_pushes_the_global_model_in_one_direction():
    """2 of 5 send 8 times the last step, signs fixed, once they know two models.

    FedAvg turns the integers of the first model into floats, so that is in round 3.
    """
    recorder = Averaging()
    strategy = AttackedStrategy(recorder, "poisonedfl", num_malicious_nodes=2)
    result = strategy.start(InProcessGrid(app(), 5), model(), num_rounds=6)
    assert [recorder.updates(1)[i] for i in (0, 1)] == [1, 2]
    memory = strategy.colluders.memory["poisonedfl"]
    assert memory["signs"].shape == (9,)
    moved = np.concatenate(
        [result.arrays[key].numpy().ravel() - START[key].ravel() for key in START]
    )
    assert moved @ memory["signs"] > 0.5 * np.abs(moved).sum() > 100


@pytest.mark.parametrize("attack", ["poisonedfl(period=2)", "rop", "sparse(share=0.5)"])
def test_a_resumed_run_remembers_what_the_attack_knew(attack, tmp_path):
    """Stopped after round 3 of 6: the same bits as the run that was not stopped."""

    def run_rounds(rounds, folder):
        inner = FedAvg(fraction_evaluate=0.0)
        attacked = AttackedStrategy(inner, attack, num_malicious_nodes=2)
        strategy = Checkpointed(attacked, folder)
        grid = InProcessGrid(app(), 5)
        random.seed(0)  # the order of the replies
        return strategy.start(grid, floats, num_rounds=rounds).arrays

    # FedAvg turns an array of integers into floats, which no checkpoint resumes.
    floats = ArrayRecord({key: Array(START[key]) for key in ("w", "b")})
    whole = run_rounds(6, tmp_path / "whole")
    run_rounds(3, tmp_path / "stopped")
    resumed = run_rounds(6, tmp_path / "stopped")
    for key in floats:
        np.testing.assert_array_equal(resumed[key].numpy(), whole[key].numpy())


def test_jittered_colluders_send_different_updates():
    found = run("jitter(ipm(epsilon=0.5), scale=0.1)", nodes=2).updates()
    assert found[0] != found[1]
    assert [found[0], found[1]] == pytest.approx([-2, -2], abs=0.5)


def test_search_is_aimed_at_the_rule_that_runs():
    """Adaptive moves ctma(gm) farther than IPM does, in Flower's messages."""

    def moved(attack):
        inner = FedAvg(fraction_evaluate=0.0)
        robust = RobustStrategy(inner, "ctma(gm)", num_malicious_nodes=2)
        strategy = AttackedStrategy(robust, attack, num_malicious_nodes=2)
        result = strategy.start(InProcessGrid(app(), 7), model(), num_rounds=1)
        # The honest add 3 to 7.
        return abs(result.arrays["b"].numpy()[0] - 20 - 5)

    assert moved("trimevasion") >= moved("adaptive") > moved("ipm")


def test_optimal_attacks_need_a_rule():
    with pytest.raises(ValueError, match="Wrap a RobustStrategy"):
        AttackedStrategy(FedMedian(), "during(optimalalie, start=3)", 2)


def test_where_a_strategy_averages_the_mean_is_the_rule():
    """It goes as far as the search does, here to ε = 64·4."""
    strategy = AttackedStrategy(FedAdam(), OptimalIPM(evaluations=9), 2)
    assert isinstance(strategy.colluders.joint_attack(1), OptimalIPM)
    assert run(OptimalIPM(evaluations=9), nodes=2).updates()[0] < -4 * 200


@pytest.mark.parametrize(
    "arguments", [{"attack": 7}, {"attack": "ailie"}, {"num_malicious_nodes": -1}]
)
def test_wrong_settings_are_named(arguments):
    with pytest.raises(ValueError, match=f"Parameter `{next(iter(arguments))}`"):
        AttackedStrategy(FedAvg(), **{"attack": Fang(), **arguments})


def test_optimal_attack_is_aimed_at_the_rule_in_use():
    """The median of five rows, two of them below: the smallest honest one."""
    inner = FedAvg(fraction_evaluate=0.0)
    strategy = AttackedStrategy(
        RobustStrategy(inner, "cwmed", num_malicious_nodes=2),
        OptimalIPM(),
        num_malicious_nodes=2,
    )
    result = strategy.start(InProcessGrid(app(), 5), model(), num_rounds=1)
    np.testing.assert_allclose(result.arrays["b"].numpy(), 23)


@pytest.mark.parametrize("weighted_by_key", [None, "num-examples"])
def test_optimal_attack_knows_the_weights_that_clients_claim(weighted_by_key):
    """Its reply is that of the same attack on the same weights and f."""
    sizes = np.array([1.0, 9, 1, 2, 3])

    def log_guarantee(message, context, call_next):
        reply = call_next(message, context)
        partition = int(context.node_config["partition-id"])
        reply.content["metrics"]["num-examples"] = sizes[partition]
        return reply

    class Seeing(RobustStrategy):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.seen = [r.content["arrays"]["b"].numpy()[0] - 20 for r in replies]
            return super().aggregate_train(server_round, replies)

    strategy = Seeing(
        FedAvg(fraction_evaluate=0.0),
        "ctma(cwmed)",
        num_malicious_nodes=1,
        weighted_by_key=weighted_by_key,
    )
    attacked = AttackedStrategy(strategy, "optimalalie", num_malicious_nodes=1)
    attacked.start(InProcessGrid(app([log_guarantee]), 5), model(), num_rounds=1)
    honest = np.outer([2.0, 3, 4, 5], np.ones(8))
    if weighted_by_key:
        # No claim is larger than the second largest, 3: one of them has 3 of 10.
        aimed = OptimalALIE().against(strategy.aggregator, 0.3)
        expected = aimed(honest, 1, weights=np.minimum(sizes, 3)[[1, 2, 3, 4, 0]])
    else:
        expected = OptimalALIE().against(strategy.aggregator, 1)(honest, 1)
    assert sorted(strategy.seen) == pytest.approx(sorted([expected[0, 0], 2, 3, 4, 5]))


@pytest.mark.parametrize("attack", SEARCHES)
@pytest.mark.parametrize("rule", ["fltrust", "zeno(cwmed)", "ctma(monna)"])
def test_search_knows_the_servers_update_which_is_trained_once(rule, attack):
    """Its reply is that of the same attack with the reference, and it is a lie."""
    own, calls, seen = np.array([4.0, 4, 4, 4, -1, 4, 4, 4]), [], []

    def server_update(server_round, arrays):
        calls.append(server_round)
        trained = {key: Array(array.numpy()) for key, array in arrays.items()}
        trained["w"] = Array(arrays["w"].numpy() + own[:6].reshape(2, 3).astype("f"))
        trained["b"] = Array(arrays["b"].numpy() + own[6:])
        return ArrayRecord(trained)

    class Seeing(RobustStrategy):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.extend(r.content["arrays"] for r in replies)
            return super().aggregate_train(server_round, replies)

    inner = FedAvg(fraction_evaluate=0.0)
    robust = Seeing(inner, rule, num_malicious_nodes=2, server_update=server_update)
    strategy = AttackedStrategy(robust, attack, num_malicious_nodes=2)
    strategy.start(InProcessGrid(app(), 7), model(), num_rounds=1)
    assert calls == [1]
    honest = np.outer([3.0, 4, 5, 6, 7], np.ones(8))
    colluders = Colluders(attack, 2, 0, aimed=True)
    aimed = (parse_aggregator(rule), 2)
    malicious = np.outer([1.0, 2], np.ones(8))
    expected = colluders.craft(1, honest, malicious, None, aimed, None, own)
    assert (expected != malicious).any()
    sent = [np.r_[a["w"].numpy().ravel() - 10, a["b"].numpy() - 20] for a in seen]
    order = np.lexsort(np.transpose(sent))
    everyone = np.vstack([expected, honest])
    np.testing.assert_allclose(
        np.array(sent)[order],
        everyone[np.lexsort(everyone.T)],
        rtol=1e-4,
        atol=1e-4,
    )


def test_search_knows_where_centred_clipping_starts():
    """Nowhere else than at zero in round 1, then at the update of the round before."""
    known, models = [], []

    class Spying(OptimalIPM):
        def candidates(self, search):
            known.append(search.known.reference)
            return super().candidates(search)

    class Seeing(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            models.append(arrays["b"].numpy()[0])
            return super().configure_train(server_round, arrays, config, grid)

    inner = Seeing(fraction_evaluate=0.0)
    robust = RobustStrategy(inner, "cclip", num_malicious_nodes=2)
    strategy = AttackedStrategy(robust, Spying(), num_malicious_nodes=2)
    strategy.start(InProcessGrid(app(), 7), model(), num_rounds=3)
    assert known[0] is None
    steps = np.outer(np.diff(models), np.ones(8))
    np.testing.assert_allclose(known[1:], steps, rtol=1e-5)


def test_round_in_which_the_rule_cannot_work_goes_on(caplog):
    strategy = AttackedStrategy(
        RobustStrategy(FedAvg(), "bulyan", num_malicious_nodes=2),
        "optimalalie",
        num_malicious_nodes=2,
    )
    silent = ByzantineMod("malformed(fault=silent)", nodes={8, 9, 10})
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        with pytest.raises(RuntimeError, match="No round of 1 was aggregated"):
            strategy.start(InProcessGrid(app([silent]), 11), model(), num_rounds=1)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "No attack in round 1" in caplog.text


def final_model(run_in):
    """FedAvg with everybody, two partitions colluding as marked, three rounds."""
    attack = "then(signflip, fang, start=2)"
    result = []

    server = ServerApp()

    @server.main()
    def main(grid, context):
        inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=5, min_available_nodes=5)
        strategy = AttackedStrategy(inner, attack, seed=4)
        found = strategy.start(grid, model(), num_rounds=3)
        result.append(np.sort(found.arrays["b"].numpy()))

    run_in(server, ByzantineMod(attack, nodes={1, 3}).around(app()))
    return result[0]


@pytest.mark.long
def test_ray_gives_the_same_model_as_one_process():
    """Flower draws new node ids in every run; marks tell the same partitions."""

    def in_process(server, client):
        context = Context(1, 1, {}, RecordDict(), {})
        server(InProcessGrid(client, 5), context)

    def in_ray(server, client):
        run_simulation(server, client, num_supernodes=5)

    np.testing.assert_allclose(final_model(in_ray), final_model(in_process), rtol=1e-12)


def test_who_takes_replies_one_by_one_is_attacked_on_the_way():
    with pytest.raises(ValueError, match="AttackedGrid"):
        AttackedStrategy(
            AsyncRobustStrategy(AnyTimeSGD(0.1), num_malicious_nodes=1), "alie"
        )
