"""Tournaments: all rules against all attacks, in any app."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from rich.console import Console

from flwr_ctma.attacks import OptimalALIE
from flwr_ctma.experiments import match
from flwr_ctma.experiments import tournament as cup
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.tournament import Match, MatchResult, Tournament, scores
from flwr_ctma.report.heatmap import draw_scores, ledger_table, score_table
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
        (["ctma(kram)"], ["none"], [1], "did you mean `krum`"),
        (["gm"], ["signflop"], [1], "did you mean `signflip`"),
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

    monkeypatch.setattr(cup, "one_core_each", lambda *_: ThreadPoolExecutor(1))
    plan = tournament.matches(["gm"], ["none", "signflip"], [2], [0])
    outcomes = dict(tournament.play_all(plan, tmp_path / "cup", 1, Counted))
    assert len(made) == len(plan)
    alone = {pairing: tournament.run_match(pairing).value for pairing in plan}
    assert {pairing: outcomes[pairing].value for pairing in plan} == alone


def test_two_tournaments_do_not_write_the_same_lines(tournament, tmp_path) -> None:
    plan = tournament.matches(["gm"], ["none", "signflip"], [0], [0])
    first = tournament.play_all(plan, tmp_path / "cup", 1)
    next(first)
    with pytest.raises(ValueError, match="in which nothing else is at work"):
        next(tournament.play_all(plan, tmp_path / "cup", 1))
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
    assert attacked.auc > 0.8 and attacked.alarms == 0
    broken = tournament.run_match(Match("ctma(gm)", "nonfinite", 2, 0))
    assert (broken.auc, broken.alarms) == (1.0, 0)
    peaceful = tournament.run_match(Match("ctma(gm)", "none", 4, 0))
    assert (peaceful.auc, peaceful.found, peaceful.alarms) == (None, 0, 0)
    unguarded = tournament.run_match(Match("fedavg", "signflip", 4, 0))
    assert (unguarded.auc, unguarded.found, unguarded.alarms) == (None, None, None)


def test_colluders_do_not_train_what_nobody_sees(tournament, monkeypatch) -> None:
    """The same to the last bit, with 4 · 2 trainings less in three rounds."""
    trained = []

    class Counting(ClientApp):
        def __call__(self, message, context):
            trained.append(message.metadata.message_type == "train")
            return self.app(message, context)

    def load(app):
        server_app, client_app = original(app)
        counting = Counting()
        counting.app = client_app
        return server_app, counting

    original = match.load
    monkeypatch.setattr(match, "load", load)
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
    assert outcome.value is None and "Krum among n = 10" in outcome.why


def test_an_app_of_the_former_api_is_named_before_it_runs(
    tmp_path, monkeypatch
) -> None:
    def no_grid(*args):
        raise AssertionError("it runs")

    monkeypatch.chdir(tmp_path)
    legacy = EXAMPLE.parent / "quickstart-legacy"
    config = FlowerApp(legacy).run_config("num-server-rounds=1")
    tournament = Tournament(str(legacy), config, num_nodes=10)
    with pytest.raises(ValueError, match="strategy of the Message API"):
        tournament.run_match(Match("gm", "none", 0, 0), no_grid)


def test_an_app_that_would_wait_for_more_nodes_is_told(tournament) -> None:
    few = Tournament(tournament.app, tournament.run_config, num_nodes=5)
    with pytest.raises(ValueError, match="`num-nodes` should be at least 10"):
        few.run_match(Match("gm", "none", 1, 0))


def test_a_metric_that_the_app_does_not_report_is_named(tournament) -> None:
    other = Tournament(tournament.app, tournament.run_config, 10, metric="f1")
    with pytest.raises(ValueError, match=r"`metric`.*'accuracy'"):
        other.run_match(Match("fedavg", "none", 0, 0))


def test_a_run_that_fails_ends_no_other(tournament, tmp_path) -> None:
    other = Tournament(tournament.app, tournament.run_config, 10, metric="f1")
    plan = other.matches(["gm"], ["none", "signflip"], [1], [0])
    outcomes = dict(other.play_all(plan, tmp_path / "cup", workers=1))
    assert {outcome.value for outcome in outcomes.values()} == {None}
    assert all("`metric`" in outcome.why for outcome in outcomes.values())
    assert not (tmp_path / "cup" / "matches.jsonl").exists()  # to be played again


def test_a_tournament_goes_on_where_it_was_stopped(tournament, tmp_path) -> None:
    plan = tournament.matches(["fedavg", "gm"], ["none"], [1], [0])
    folder = tmp_path / "cup"
    first = dict(tournament.play_all(plan[:1], folder, workers=1))
    with (folder / "matches.jsonl").open("a") as file:
        file.write('{"aggregator": "half a li')
    both = dict(tournament.play_all(plan, folder, workers=2))
    assert both[plan[0]] == first[plan[0]]
    assert set(both) == set(plan)
    records = (folder / "matches.jsonl").read_text().splitlines()
    assert [json.loads(r)["aggregator"] for r in records] == ["fedavg", "gm"]
    other = Tournament(tournament.app, tournament.run_config, 10, metric="loss")
    with pytest.raises(ValueError, match="`output`"):
        list(other.play_all(plan, folder, workers=1))


@pytest.mark.parametrize("line", ["{}", "0", "half a line"])
def test_a_folder_that_is_no_tournament_of_ours_is_named(
    tournament, tmp_path, line
) -> None:
    (tmp_path / "matches.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"`file` should be that of a tournament"):
        list(tournament.play_all([], tmp_path, workers=1))


def test_a_table_of_who_was_suspected() -> None:
    outcomes = {
        Match("fedavg", "alie", 3, 0): MatchResult(0.9, 1.0),
        Match("gm", "alie", 3, 0): MatchResult(0.9, 1.0, "", 1.0, 3, 0),
        Match("gm", "alie", 3, 1): MatchResult(0.9, 1.0, "", 0.5, 2, 1),
        Match("gm", "none", 3, 0): MatchResult(0.9, 1.0, "", None, 0, 2),
        Match("krum", "alie", 3, 0): MatchResult(None, 0.0, "too few"),
        Match("gm", "alie", 5, 0): MatchResult(0.9, 1.0, "", 0.1, 0, 0),
    }
    console = Console(width=100, record=True)
    console.print(ledger_table(3, 17, outcomes, ["none", "alie"]))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert ["none", "2", "false"] in rows
    assert ["alie", "0.75", "2.5+0.5"] in rows
    assert ["attack", "gm"] in rows
    assert ledger_table(8, 17, outcomes, ["none", "alie"]) is None


def test_the_best_worst_case_comes_first(tmp_path) -> None:
    outcomes = {
        Match("mean", "a", 1, 0): MatchResult(0.9, 1.0),
        Match("mean", "b", 1, 0): MatchResult(0.1, 1.0),
        Match("gm", "a", 1, 0): MatchResult(0.7, 1.0),
        Match("gm", "a", 1, 1): MatchResult(0.5, 1.0),
        Match("gm", "b", 1, 0): MatchResult(0.8, 1.0),
        Match("krum", "a", 1, 0): MatchResult(None, 0.0, "too few"),
        Match("krum", "b", 1, 0): MatchResult(None, 0.0, "too few"),
    }
    found = scores(outcomes)
    assert list(found[1]) == ["gm", "mean", "krum"]
    assert found[1]["gm"] == {"a": pytest.approx(0.6), "b": 0.8}
    console = Console(width=100, record=True)
    console.print(score_table(1, 10, found[1]))
    text = console.export_text()
    assert "1 of 10 clients malicious" in text and "60.0" in text and "–" in text
    draw_scores(found, 10, "accuracy", tmp_path / "cup.png")
    assert (tmp_path / "cup.svg").read_text().startswith("<?xml")
    assert (tmp_path / "cup.png").stat().st_size > 5000


def test_a_metric_that_is_no_number_is_the_worst_case(tmp_path) -> None:
    """And what was not played yet is none: tables and figures have a gap there."""
    outcomes = {
        Match("mean", "a", 1, 0): MatchResult(0.9, 1.0),
        Match("mean", "b", 1, 0): MatchResult(float("nan"), 1.0),
        Match("gm", "a", 1, 0): MatchResult(0.3, 1.0),
    }
    found = scores(outcomes)
    assert list(found[1].items()) == [
        ("gm", {"a": 0.3, "b": None}),
        ("mean", {"a": 0.9, "b": -math.inf}),
    ]
    console = Console(width=100, record=True)
    console.print(score_table(1, 10, found[1]))
    draw_scores(found, 10, "accuracy", tmp_path / "cup.png")
