"""Tournaments: all rules against all attacks, in any app."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from rich.console import Console

from flwr_ctma.attacks import OptimalALIE, parse_attack
from flwr_ctma.cli.tables import ledger_table, score_table
from flwr_ctma.experiments import tournament as tournament_module
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.scores import mean_scores, worst_case_interval
from flwr_ctma.experiments.tournament import (
    DEFAULT_ATTACKS,
    Match,
    MatchResult,
    Tournament,
    read_matches,
)
from flwr_ctma.report.charts import score_chart
from flwr_ctma.report.render import write_chart
from flwr_ctma.simulation.batched import BatchedGrid

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart-numpy"


@pytest.fixture
def tournament(tmp_path, monkeypatch) -> Tournament:
    """An app that knows nothing of attacks, and writes to the folder it runs in."""
    monkeypatch.chdir(tmp_path)
    config = FlowerApp(EXAMPLE).run_config("num-server-rounds=3")
    return Tournament(str(EXAMPLE), config, num_nodes=10, metric="accuracy")


def test_every_rule_meets_every_attack(tournament) -> None:
    plan = tournament.matches(["gm", "krum"], ["none", "alie"], [1, 3], [0, 7])
    assert len(set(plan)) == 16
    assert Match("krum", "alie", 3, 7) in plan


@pytest.mark.parametrize(
    ("rules", "attacks", "malicious", "named"),
    [
        (["ctma(kram)"], ["none"], [1], "Did you mean `krum`"),
        (["gm"], ["signflop"], [1], "Did you mean `signflip`"),
        (["gm"], ["none"], [5], "less than half of 10"),
    ],
)
def test_what_is_misspelled_is_named_before_any_run(
    tournament, rules, attacks, malicious, named
) -> None:
    with pytest.raises(ValueError, match=named):
        tournament.matches(rules, attacks, malicious, [0])


def test_an_app_that_knows_no_attack_is_attacked_and_defended(tournament) -> None:
    attacked = tournament.run_match(Match("fedavg", "scaling(factor=-20)", 4, 0)).value
    defended = tournament.run_match(
        Match("ctma(gm)", "scaling(factor=-20)", 4, 0)
    ).value
    colluding = tournament.run_match(Match("ctma(gm)", "alie", 4, 0)).value
    peaceful = tournament.run_match(Match("fedavg", "none", 0, 0)).value
    assert attacked < 0.5 < defended
    assert colluding != peaceful
    assert peaceful == tournament.run_match(Match("fedavg", "none", 0, 0)).value


def test_matches_are_played_on_the_kind_of_grid_that_is_asked_for(
    tournament, tmp_path, monkeypatch
) -> None:
    """Also where gradients are computed together: the outcomes are the same."""
    made = []

    class Counted(BatchedGrid):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(
        tournament_module, "single_core_pool", lambda *_: ThreadPoolExecutor(1)
    )
    plan = tournament.matches(["gm"], ["none", "signflip"], [2], [0])
    outcomes = dict(tournament.run(plan, tmp_path / "cup", 1, Counted))
    assert len(made) == len(plan)
    alone = {pairing: tournament.run_match(pairing).value for pairing in plan}
    assert {pairing: outcomes[pairing].value for pairing in plan} == alone


def test_two_tournaments_do_not_write_the_same_lines(tournament, tmp_path) -> None:
    plan = tournament.matches(["gm"], ["none", "signflip"], [0], [0])
    first = tournament.run(plan, tmp_path / "cup", 1)
    next(first)
    with pytest.raises(ValueError, match="that no other process is using"):
        next(tournament.run(plan, tmp_path / "cup", 1))
    assert len(list(first)) == 1


def test_an_app_that_waits_for_its_nodes_waits_for_those_there_are(monkeypatch) -> None:
    root = EXAMPLE.parent.parent
    monkeypatch.chdir(root)
    config = FlowerApp(root).run_config("num-server-rounds=1 local-steps=1")
    assert config["num-nodes"] == 17
    outcome = Tournament(str(root), config, num_nodes=4).run_match(
        Match("gm", "none", 0, 1)
    )
    assert outcome.value is not None


def test_who_attacks_is_told_by_the_ledger(tournament) -> None:
    attacked = tournament.run_match(Match("ctma(gm)", "scaling(factor=-20)", 2, 0))
    assert attacked.auc > 0.8 and attacked.false_suspects == 0
    broken = tournament.run_match(Match("ctma(gm)", "nonfinite", 2, 0))
    assert (broken.auc, broken.false_suspects) == (1.0, 0)
    peaceful = tournament.run_match(Match("ctma(gm)", "none", 4, 0))
    assert (peaceful.auc, peaceful.true_suspects, peaceful.false_suspects) == (
        None,
        0,
        0,
    )
    unguarded = tournament.run_match(Match("fedavg", "signflip", 4, 0))
    assert (unguarded.auc, unguarded.true_suspects, unguarded.false_suspects) == (
        None,
        None,
        None,
    )


def test_colluders_do_not_train_what_nobody_sees(tournament, monkeypatch) -> None:
    """The same to the last bit, with 4 · 2 trainings less in three rounds."""
    trained = []

    class Counting(ClientApp):
        def __call__(self, message, context):
            trained.append(message.metadata.message_type == "train")
            return self.app(message, context)

    def load(self):
        server_app, client_app = original(self)
        counting = Counting()
        counting.app = client_app
        return server_app, counting

    original = FlowerApp.load
    monkeypatch.setattr(FlowerApp, "load", load)
    outcomes = []
    for needs_malicious in (False, True):
        monkeypatch.setattr(OptimalALIE, "needs_malicious", needs_malicious)
        outcomes.append(tournament.run_match(Match("cwmed", "optimalalie", 4, 0)))
        outcomes.append(sum(trained))
        trained.clear()
    assert outcomes[0].value == outcomes[2].value
    assert (outcomes[1], outcomes[3]) == (22, 30)


def test_a_rule_that_is_not_defined_for_so_many_is_not_played(tournament) -> None:
    outcome = tournament.run_match(Match("krum", "none", 4, 0))
    assert outcome.status == "undefined" and "krum among n = 10" in outcome.reason


def test_an_app_of_the_former_api_is_named_before_it_runs(
    tmp_path, monkeypatch
) -> None:
    def no_grid(*args):
        raise AssertionError("it runs")

    monkeypatch.chdir(tmp_path)
    legacy = EXAMPLE.parent / "quickstart-legacy"
    config = FlowerApp(legacy).run_config("num-server-rounds=1")
    tournament = Tournament(str(legacy), config, num_nodes=10)
    with pytest.raises(ValueError, match="strategy of Flower's Message API"):
        tournament.run_match(Match("gm", "none", 0, 0), no_grid)


def test_an_app_that_would_wait_for_more_nodes_is_told(tournament) -> None:
    few = Tournament(tournament.app, tournament.run_config, num_nodes=5)
    with pytest.raises(ValueError, match="`num-nodes` should be at least 10"):
        few.run_match(Match("gm", "none", 1, 0))


def test_a_metric_that_the_app_does_not_report_is_named(tournament) -> None:
    other = Tournament(tournament.app, tournament.run_config, 10, metric="f1")
    with pytest.raises(ValueError, match=r"`metric` .*: accuracy, loss"):
        other.run_match(Match("fedavg", "none", 0, 0))


def test_a_run_that_fails_ends_no_other(tournament, tmp_path) -> None:
    other = Tournament(tournament.app, tournament.run_config, 10, metric="f1")
    plan = other.matches(["gm"], ["none", "signflip"], [1], [0])
    outcomes = dict(other.run(plan, tmp_path / "cup", workers=1))
    assert {outcome.value for outcome in outcomes.values()} == {None}
    assert all("`metric`" in outcome.reason for outcome in outcomes.values())
    assert {outcome.status for outcome in outcomes.values()} == {"crashed"}
    assert other.saved(plan, tmp_path / "cup") == 0  # they are run again


def test_a_tournament_goes_on_where_it_was_stopped(tournament, tmp_path) -> None:
    plan = tournament.matches(["fedavg", "gm"], ["none"], [1], [0])
    folder = tmp_path / "cup"
    first = dict(tournament.run(plan[:1], folder, workers=1))
    with (folder / "matches.jsonl").open("a") as file:
        file.write('{"aggregator": "half a li')
    seconds = tournament.estimate(plan, folder, workers=1)
    assert seconds == first[plan[0]].seconds  # no match is tried for it
    both = dict(tournament.run(plan, folder, workers=2))
    assert both[plan[0]] == first[plan[0]]
    assert set(both) == set(plan)
    records = (folder / "matches.jsonl").read_text().splitlines()
    assert [json.loads(r)["aggregator"] for r in records] == ["fedavg", "gm"]
    other = Tournament(tournament.app, tournament.run_config, 10, metric="loss")
    with pytest.raises(ValueError, match="`output`"):
        list(other.run(plan, folder, workers=1))


@pytest.mark.parametrize("line", ["{}", '{"aggregator": "gm"}'])
def test_a_folder_that_is_no_tournament_of_ours_is_named(
    tournament, tmp_path, line
) -> None:
    (tmp_path / "matches.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"`file` should be a file of a tournament"):
        list(tournament.run([], tmp_path, workers=1))


def test_damaged_line_costs_one_match(tournament, tmp_path, caplog) -> None:
    folder = tmp_path / "damaged"
    plan = tournament.matches(["fedavg", "gm"], ["none"], [1], [0])
    first = dict(tournament.run(plan, folder, workers=1))
    file = folder / "matches.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(f"{lines[0][:20]}\n{lines[1]}\n")
    assert tournament.saved(plan, folder) == 1
    assert {m: r.value for m, r in tournament.run(plan, folder, 1)} == {
        m: r.value for m, r in first.items()
    }


def test_ledger_table_averages_over_seeds() -> None:
    results = {
        Match("fedavg", "alie", 3, 0): MatchResult(0.9, 1.0),
        Match("gm", "alie", 3, 0): MatchResult(0.9, 1.0, "finished", "", 1.0, 3, 0),
        Match("gm", "alie", 3, 1): MatchResult(0.9, 1.0, "finished", "", 0.5, 2, 1),
        Match("gm", "none", 3, 0): MatchResult(0.9, 1.0, "finished", "", None, 0, 2),
        Match("krum", "alie", 3, 0): MatchResult(None, 0.0, "undefined", "too few"),
        Match("gm", "alie", 5, 0): MatchResult(0.9, 1.0, "finished", "", 0.1, 0, 0),
    }
    console = Console(width=100, record=True)
    console.print(ledger_table(3, 17, results, ["none", "alie"]))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert ["none", "2", "false"] in rows
    assert ["alie", "0.75", "2.5+0.5"] in rows
    assert ["attack", "gm"] in rows
    assert ledger_table(8, 17, results, ["none", "alie"]) is None


def test_best_worst_case_comes_first(tmp_path) -> None:
    undefined = MatchResult(None, 0.0, "undefined", "too few")
    results = {
        Match("mean", "a", 1, 0): MatchResult(0.9, 1.0),
        Match("mean", "b", 1, 0): MatchResult(0.1, 1.0),
        Match("gm", "a", 1, 0): MatchResult(0.7, 1.0),
        Match("gm", "a", 1, 1): MatchResult(0.5, 1.0),
        Match("gm", "b", 1, 0): MatchResult(0.8, 1.0),
        Match("krum", "a", 1, 0): undefined,
        Match("krum", "b", 1, 0): undefined,
    }
    found = mean_scores(results)
    assert list(found[1]) == ["gm", "mean", "krum"]
    assert found[1]["gm"] == {"a": pytest.approx(0.6), "b": 0.8}
    console = Console(width=100, record=True)
    console.print(score_table(1, 10, found[1], results))
    text = console.export_text()
    assert "1 of 10 clients malicious" in text and "60.0" in text and "–" in text
    for suffix in ("png", "svg"):
        path = tmp_path / f"scores.{suffix}"
        write_chart(score_chart(found, 10, "accuracy"), path)
        assert path.stat().st_size > 5000
    assert (tmp_path / "scores.svg").read_text().startswith("<svg")


def test_crashed_or_diverged_match_is_the_worst_case_of_its_rule() -> None:
    """A match that has not been run yet is a gap, not a failure."""
    results = {
        Match("mean", "a", 1, 0): MatchResult(0.9, 1.0),
        Match("mean", "b", 1, 0): MatchResult(None, 1.0, "diverged", "NaN"),
        Match("gm", "a", 1, 0): MatchResult(0.3, 1.0),
        Match("caf", "a", 1, 0): MatchResult(0.9, 1.0),
        Match("caf", "b", 1, 0): MatchResult(None, 1.0, "crashed", "out of memory"),
    }
    found = mean_scores(results)
    assert next(iter(found[1])) == "gm"
    assert found[1]["gm"] == {"a": 0.3, "b": None}
    assert found[1]["mean"] == {"a": 0.9, "b": -math.inf}
    assert found[1]["caf"] == {"a": 0.9, "b": -math.inf}
    console = Console(width=100, record=True)
    console.print(score_table(1, 10, found[1]))
    text = console.export_text()
    assert text.count("failed") == 4 and "–" in text


def test_metric_below_zero_is_a_number() -> None:
    results = {
        Match("mean", "a", 1, 0): MatchResult(-2.5, 1.0),
        Match("gm", "a", 1, 0): MatchResult(-0.25, 1.0),
    }
    scores = mean_scores(results)
    console = Console(width=100, record=True)
    console.print(score_table(1, 10, scores[1]))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["gm", "-0.25", "-0.25"] in lines and ["mean", "-2.5", "-2.5"] in lines
    texts = [
        v["text"] for v in score_chart(scores, 10, "r2")["concat"][0]["data"]["values"]
    ]
    assert texts == ["-0.25", "-0.25", "-2.5", "-2.5"]


def test_interval_of_the_worst_case_pairs_seeds_over_attacks() -> None:
    """The mean over seeds of (0.4, 0.6) is below that of attack b in every resample."""
    values = {("a", 0): 0.4, ("a", 1): 0.6, ("b", 0): 0.7, ("b", 1): 0.9}
    results = {
        Match("gm", attack, 1, seed): MatchResult(value, 1.0)
        for (attack, seed), value in values.items()
    }
    interval = worst_case_interval(results, "gm", 1)
    assert (interval.low, interval.high) == pytest.approx((0.4, 0.6))
    del results[Match("gm", "b", 1, 1)]
    assert worst_case_interval(results, "gm", 1) is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ((0.5, 1.0, "won"), "`status` should be one of finished, diverged"),
        ((None, 1.0), "`value` should be a finite number"),
        ((float("nan"), 1.0), "`value` should be a finite number"),
        ((0.5, 1.0, "crashed"), "None, as the match is crashed"),
    ],
)
def test_result_that_contradicts_itself_is_refused(fields, named) -> None:
    with pytest.raises(ValueError, match=named):
        MatchResult(*fields)


@pytest.mark.parametrize("attack", DEFAULT_ATTACKS)
def test_default_attacks_are_known(attack) -> None:
    assert parse_attack(str(parse_attack(attack))) == parse_attack(attack)


def test_saved_results_are_read_as_written(tmp_path, tournament) -> None:
    plan = tournament.matches(["gm"], ["none"], [1], [0])
    written = dict(tournament.run(plan, tmp_path / "one", 1))
    assert read_matches(tmp_path / "one" / "matches.jsonl") == written


def test_value_is_the_mean_of_the_last_evaluations(tournament) -> None:
    match = Match("gm", "none", 0, 0)
    values = [
        Tournament(
            *(tournament.app, {**tournament.run_config, "num-server-rounds": r}),
            10,
            last=1,
        )
        .run_match(match)
        .value
        for r in (1, 2, 3)
    ]
    every = Tournament(tournament.app, tournament.run_config, 10, last=2)
    assert every.run_match(match).value == pytest.approx(sum(values[1:]) / 2)
