"""Runs that diverge are noticed, and go back if they are told to."""

import copy
import itertools
import random
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi

import server.app
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.simulation.clock import ArrivalGrid, FixedDurations
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    Checkpointed,
    DivergenceGuard,
    Observed,
    RobustStrategy,
)
from flwr_ctma.tracking.run_folder import RunFolder

N, F = 7, 2
INITIAL = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
ALL = {"min_train_nodes": N, "min_available_nodes": N}


def record(values):
    return ArrayRecord({"w": Array(values.astype(np.float32))})


def clients(rate=0.3, wild=(), lie=None, called="loss"):
    """Gradient descent on ‖w - partition/10‖²/2; in wild rounds, a leap of 1e6."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        number = message.content["config"].get("server-round", 0)
        w = message.content["arrays"]["w"].numpy()
        gradient = w - client / 10
        moved = w - rate * gradient + (1e6 if number in wild else 0)
        loss = float(np.square(gradient, dtype=np.float64).sum())
        if client == 0 and lie is not None:
            moved, loss = lie(moved), 1e300
        metrics = MetricRecord({"num-examples": 1, called: loss})
        content = RecordDict({"arrays": record(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def run(strategy, app, rounds=12, initial=INITIAL, **start):
    random.seed(3)
    grid = InProcessGrid(app, N)
    return strategy.start(grid, record(initial), rounds, **start)


def robust(inside=FedAvg, **settings):
    inner = inside(fraction_evaluate=0.0, **ALL, **settings)
    return RobustStrategy(inner, num_malicious_nodes=F)


def alarms(result):
    rounds = result.train_metrics_clientapp.items()
    return [number for number, metrics in rounds if "diverged" in metrics]


@pytest.mark.parametrize("rollback", [False, True])
def test_metrics_of_an_ordinary_evaluation_pass_unchanged(rollback):
    guard = DivergenceGuard(FedAvg(), rollback)
    InProcessGrid(ClientApp(), 1)  # who sends messages
    for number in range(1, 4):
        asked = Message(RecordDict(), 2, "evaluate")
        content = RecordDict({"m": MetricRecord({"num-examples": 1, "loss": 0.5})})
        reply = Message(content, reply_to=asked)
        assert guard.aggregate_evaluate(number, [reply]) == {"loss": 0.5}


@pytest.mark.parametrize("inside", [FedAvg, FedAdam, FedYogi, FedAvgM])
@pytest.mark.parametrize("rollback", [False, True])
def test_an_ordinary_run_is_left_alone(inside, rollback):
    """No alarm, and the same bits as without."""
    watched = run(DivergenceGuard(robust(inside), rollback), clients())
    plain = run(robust(inside), clients())
    assert alarms(watched) == []
    assert watched.arrays == plain.arrays
    assert watched.train_metrics_clientapp == plain.train_metrics_clientapp


def test_a_rate_a_hundred_times_too_high_is_noticed():
    result = run(DivergenceGuard(robust()), clients(rate=30.0), rounds=6)
    assert alarms(result)[0] == 2
    assert np.abs(result.arrays["w"].numpy()).max() > 1e6


def test_a_diverging_run_ends_with_the_last_good_model():
    result = run(DivergenceGuard(robust(), rollback=True), clients(rate=30.0), rounds=5)
    assert alarms(result) == [2, 4]  # the first step of all is like no other
    assert result.train_metrics_clientapp[4]["rolled-back-to"] == 0
    one_step = INITIAL - 30 * (INITIAL - np.median(np.arange(N)) / 10)
    assert np.abs(result.arrays["w"].numpy()).max() < 2 * np.abs(one_step).max()


def test_a_run_whose_rounds_are_all_taken_back_is_an_error():
    strategy = DivergenceGuard(robust(), rollback=True)
    with pytest.raises(RuntimeError, match="All rounds of the run were taken back"):
        run(strategy, clients(rate=30.0), rounds=6)


def test_second_run_of_a_guard_knows_nothing_of_the_first():
    guard = DivergenceGuard(robust(), rollback=True)
    run(guard, clients(wild=(8,)), rounds=8)
    again = run(guard, clients(), rounds=3, initial=INITIAL + 50)
    new = run(DivergenceGuard(robust()), clients(), rounds=3, initial=INITIAL + 50)
    assert alarms(again) == []
    assert again.arrays == new.arrays


def test_slow_growth_is_noticed_as_well():
    """Without a loss: of steps 2, 4, 8, … the seventh is too long for the median."""
    result = run(
        DivergenceGuard(robust()), clients(rate=3.0, called="error"), rounds=12
    )
    assert alarms(result)[0] == 7


class Recorded(FedAdam):
    """FedAdam whose class, which is no state, keeps what it was before each round."""

    before: ClassVar[dict] = {}

    def configure_train(self, server_round, arrays, config, grid):
        self.before[server_round] = copy.deepcopy((self.m_t, self.v_t, arrays))
        return super().configure_train(server_round, arrays, config, grid)


@pytest.mark.parametrize(("spike", "good"), [(1, 1), (2, 1), (5, 4)])
def test_the_server_optimiser_goes_back_with_the_model(spike, good):
    """To where it was before the last round that was good, or before the first."""
    Recorded.before.clear()
    strategy = DivergenceGuard(robust(Recorded), rollback=True)
    evaluate = loss_of(INITIAL, spike)
    result = run(strategy, clients(), spike + 1, evaluate_fn=evaluate)
    assert result.evaluate_metrics_serverapp[spike]["rolled-back-to"] == good - 1
    before = Recorded.before
    (m, v, arrays), (m_then, v_then, then) = before[spike + 1], before[good]
    assert arrays == then
    if good == 1:
        assert m is v is m_then is v_then is None
    else:
        np.testing.assert_array_equal(m["w"], m_then["w"])
        np.testing.assert_array_equal(v["w"], v_then["w"])


def loss_of(target, spike=None):
    """Give an evaluate_fn: the distance to a target, and a loss that explodes once."""

    def evaluate(server_round, arrays):
        error = np.square(arrays["w"].numpy() - target, dtype=np.float64).sum()
        return MetricRecord({"loss": 1e9 if server_round == spike else 1 + error})

    return evaluate


def test_a_loss_that_explodes_in_the_last_round_is_not_what_the_run_ends_with():
    """Also through what is put outside; and all of them are told."""
    lines = []
    strategy = Observed(DivergenceGuard(robust(), rollback=True), lines.append)
    result = run(strategy, clients(), 5, evaluate_fn=loss_of(INITIAL, spike=5))
    short = run(robust(), clients(), 3)
    assert result.arrays == short.arrays
    assert result.evaluate_metrics_serverapp[5]["rolled-back-to"] == 3
    assert [line.get("diverged") for line in lines] == [None] * 5 + [1]


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_resumed_run_goes_back_to_the_same_model(tmp_path, stop):
    """Killed before, in and after the round of the alarm."""
    strategies = [DivergenceGuard(robust(FedAdam), rollback=True) for _ in range(3)]
    app, loss = clients(), {"evaluate_fn": loss_of(INITIAL, spike=5)}
    whole = run(strategies[0], app, 9, **loss)
    run(Checkpointed(strategies[1], tmp_path), app, stop, **loss)
    resumed = run(Checkpointed(strategies[2], tmp_path), app, 9, **loss)
    assert resumed.arrays == whole.arrays
    assert resumed.train_metrics_clientapp == whole.train_metrics_clientapp
    assert resumed.evaluate_metrics_serverapp == whole.evaluate_metrics_serverapp
    assert whole.evaluate_metrics_serverapp[5]["rolled-back-to"] == 3


def test_a_liar_raises_no_alarm_and_the_ledger_forgets_nothing():
    strategy = DivergenceGuard(robust(), rollback=True)
    result = run(strategy, clients(wild=[6], lie=lambda w: w * np.nan), 8)
    assert alarms(result) == [6]
    ledger = strategy.strategy.ledger
    assert ledger[2].rejected == {"not-finite": 8}


def test_a_model_that_is_not_finite_is_noticed():
    class Overflowing(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            scale = np.inf if server_round > 2 else 1.0
            return record(arrays["w"].numpy() * scale), metrics

    guard = DivergenceGuard(robust(Overflowing), rollback=True)
    result = run(guard, clients(), rounds=4)
    assert alarms(result) == [3, 4]
    assert np.isfinite(result.arrays["w"].numpy()).all()


@pytest.mark.accepts_nothing
def test_replies_that_are_mostly_rejected_are_an_alarm():
    """Honest clients are the majority: what they send is not finite any more."""
    lines = []
    strategy = Observed(DivergenceGuard(robust()), lines.append)
    with pytest.raises(RuntimeError, match="No round of 2 was aggregated"):
        run(strategy, clients(rate=1e30), 2)
    assert len(lines[1]["rejected"]) == N
    assert [line.get("diverged") for line in lines] == [None, 1, 1]


def test_it_belongs_outside_and_takes_no_factor_below_one():
    with pytest.raises(ValueError, match="put it outside"):
        RobustStrategy(DivergenceGuard(FedAvg()), num_malicious_nodes=1)
    with pytest.raises(ValueError, match="`factor` should be above 1"):
        DivergenceGuard(FedAvg(), factor=1.0)
    with pytest.raises(ValueError, match="`max_rollbacks` should be at least 1"):
        DivergenceGuard(FedAvg(), max_rollbacks=0)


def test_arrivals_are_watched_but_not_taken_back():
    """Work that is on its way belongs to no round."""
    inside = AsyncRobustStrategy(
        AnyTimeSGD(30.0, "fixed(gamma=1)"), num_malicious_nodes=1
    )
    with pytest.raises(ValueError, match="`rollback` should be False"):
        DivergenceGuard(inside, rollback=True)
    grid = ArrivalGrid(clients(called="error"), N, FixedDurations((1.0,) * N))
    result = DivergenceGuard(inside).start(grid, record(INITIAL), 5, timeout=1e6)
    assert alarms(result)


D = 2000


def training(play, rounds=20, n=17, f=5, rule="gm", inside=FedAvg, **guard):
    """Run 17 clients; `play(client, round, w, rng)` gives an update and a loss."""
    app, rng = ClientApp(), np.random.default_rng(0)
    counts = dict.fromkeys(range(n), 0)

    @app.train()
    def train(message, context):
        client = int(context.node_config["partition-id"])
        counts[client] += 1
        w = message.content["arrays"]["w"].numpy()
        update, loss = play(client, counts[client], w, rng)
        metrics = MetricRecord({"num-examples": 1, "loss": float(loss)})
        content = RecordDict({"arrays": record(w + update), "metrics": metrics})
        return Message(content, reply_to=message)

    settings = {"min_train_nodes": n, "min_available_nodes": n}
    strategy = RobustStrategy(
        inside(fraction_evaluate=0.0, **settings), rule, num_malicious_nodes=f
    )
    watched = DivergenceGuard(strategy, rollback=True, **guard)
    result = watched.start(InProcessGrid(app, n), record(np.zeros(D)), rounds)
    accepted = [
        metrics["replies-accepted"]
        for metrics in result.train_metrics_clientapp.values()
    ]
    assert min(accepted) == n
    return np.linalg.norm(1 - result.arrays["w"].numpy()), result


def honest(w, rng, rate=0.1):
    return rate * (1 - w) + 0.3 * rng.normal(size=D), np.linalg.norm(1 - w)


@pytest.mark.parametrize("rounds_of_lies", [1, 3])
@pytest.mark.parametrize("lie", ["no step", "no loss", "both", "huge loss"])
def test_a_few_odd_rounds_do_not_freeze_the_run(lie, rounds_of_lies):
    """5 of 17 set the usual step, or the usual loss, as low as they can at first."""

    def play(client, number, w, rng):
        update, loss = honest(w, rng)
        if client < 5 and number <= rounds_of_lies:
            update = np.full(D, 1e-6) if lie in ("no step", "both") else update
            loss = {"no loss": 1e-9, "both": 1e-9, "huge loss": 1e300}.get(lie, loss)
        return update, loss

    distance, result = training(play)
    assert len(alarms(result)) <= 6
    assert distance < 20


def test_lies_about_the_loss_in_every_round_do_not_freeze_the_run():
    """The data differ: some honest client has nearly no loss, so liars may say so."""

    def play(client, number, w, rng):
        update, loss = honest(w, rng)
        if client < 5:
            loss = 1e-9 if number < 4 else 1e9
        return update, 1e-6 if 5 <= client < 7 else loss

    distance, _ = training(play)
    assert distance < 20


@pytest.mark.parametrize("growth", [2.0, 4.0, 100.0])
def test_a_warm_up_of_the_rate_does_not_freeze_the_run(growth):
    """Six rounds of rates that grow twofold, fourfold and a hundredfold."""

    def play(client, number, w, rng):
        rate = 0.3 * min(growth ** (number - 6.0), 1.0)
        step = rate * (1 - w + 0.3 * rng.normal(size=D))
        return step, np.linalg.norm(1 - w)

    distance, _ = training(play, rounds=24, rule="cwtm")
    assert distance < 20


def test_rollbacks_in_a_row_are_bounded():
    """Steps grow a hundredfold in every round: two rollbacks, then one is accepted."""
    app = ClientApp()
    number = itertools.count()

    @app.train()
    def train(message, context):
        step = 1e-12 * 100.0 ** (next(number) // N)
        w = message.content["arrays"]["w"].numpy() + step
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": record(w), "metrics": metrics})
        return Message(content, reply_to=message)

    strategy = DivergenceGuard(robust(), rollback=True, max_rollbacks=2)
    result = run(strategy, app, 9, np.zeros((2, 3)))
    history = result.train_metrics_clientapp
    assert alarms(result) == [2, 3, 4, 6, 7, 8]
    back = [number for number in history if "rolled-back-to" in history[number]]
    assert back == [2, 3, 6, 7]


@pytest.mark.parametrize("sign", [1, -1])
def test_losses_below_zero_are_numbers(sign):
    """A log-likelihood that falls far below zero is fine; one that leaps is not."""

    def evaluate(server_round, arrays):
        loss = -3.0 * server_round + (1e4 if server_round == 9 and sign > 0 else 0)
        return MetricRecord({"loss": loss})

    strategy = DivergenceGuard(robust())
    result = run(strategy, clients(called="error"), 12, evaluate_fn=evaluate)
    server = result.evaluate_metrics_serverapp
    found = [number for number in server if "diverged" in server[number]]
    assert found == ([9] if sign > 0 else [])


APP = FlowerApp(Path(__file__).parents[2])


def digits(monkeypatch, folder, rollback=False, **overrides):
    """Run the repository's own app with its strategy watched."""
    build = server.app.build_strategy
    monkeypatch.setattr(
        server.app,
        "build_strategy",
        lambda config: DivergenceGuard(build(config), rollback),
    )
    settings = {key.replace("_", "-"): value for key, value in overrides.items()}
    config = APP.run_config(settings, {"output": str(folder)})
    with suppress(RuntimeError) if rollback else nullcontext():  # all rounds taken back
        APP.simulate(config["num-nodes"], config)
    monkeypatch.setattr(server.app, "build_strategy", build)
    return RunFolder(folder).rounds()


ON = {"clients": ["mu2", "momentum", "sgd"], "server": ["mu2(floored)", "momentum"]}
OPTIMIZERS = [(place, one) for place, names in ON.items() for one in names]
ATTACKS = ["none", "signflip", "alie", "ipm", "noise", "nonfinite"]


@pytest.mark.parametrize(
    ("place", "optimizer", "attack"),
    [("clients", "mu2", "ipm"), ("server", "mu2(floored)", "alie")],
)
def test_no_false_alarm_on_digits(
    monkeypatch, tmp_path, one_thread, place, optimizer, attack
):
    ordinary(monkeypatch, tmp_path, place, optimizer, attack)


@pytest.mark.long
@pytest.mark.parametrize(
    ("aggregator", "attack", "where"),
    list(itertools.product(["ctma(gm)", "cwmed"], ATTACKS, OPTIMIZERS)),
)
def test_no_false_alarm_in_sixty_runs(
    monkeypatch, tmp_path, one_thread, aggregator, attack, where
):
    settings = {"aggregator": aggregator, "partitioner": "dirichlet"}
    ordinary(monkeypatch, tmp_path, *where, attack, num_server_rounds=25, **settings)


def ordinary(monkeypatch, folder, place, optimizer, attack, **settings):
    rounds = digits(
        monkeypatch,
        folder,
        **{"num_malicious_nodes": 5, "num_server_rounds": 12, **settings},
        steps_on=place,
        optimizer=optimizer,
        attack=attack,
        learning_rate=0.3 if place == "clients" else 0.1,
    )
    assert not [line for line in rounds if "diverged" in line]


@pytest.mark.parametrize("optimizer", ON["clients"])
def test_a_rate_a_hundred_times_too_high_is_noticed_on_digits(
    monkeypatch, tmp_path, one_thread, optimizer
):
    settings = {
        "optimizer": optimizer,
        "learning_rate": 30.0,
        "attack": "none",
        "num_malicious_nodes": 5,
        "num_server_rounds": 4,
    }
    rounds = digits(monkeypatch, tmp_path, rollback=True, **settings)
    assert any("diverged" in line for line in rounds)
