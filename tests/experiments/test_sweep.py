"""Sweeps: what is planned, what is run, and what is not run again."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.sweep import Sweep
from flwr_ctma.experiments.sweep_results import (
    FinishedRun,
    PlannedRun,
    final_scores,
    mark_finished,
)
from flwr_ctma.tracking.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
APP = FlowerApp(ROOT)
QUICK = """
[run-config]
num-nodes = 5
num-malicious-nodes = 1
num-server-rounds = 3
evaluate-every = 2
local-steps = 1
"""


@pytest.fixture
def plan(tmp_path):
    def write(text):
        file = tmp_path / "plan.toml"
        file.write_text(QUICK + text)
        return file

    return write


def points(sweep):
    return [tuple(run.point.values()) for run in sweep.runs]


def test_all_combinations_but_those_excluded_and_what_is_included(plan):
    sweep = Sweep.read(
        plan("""
        [axes]
        aggregator = ["gm", "krum"]
        attack = ["none", "alie"]
        [[exclude]]
        aggregator = "krum"
        attack = ["alie", "minmax"]
        [[include]]
        aggregator = ["cwmed", "gm"]
        attack = "none"
        """),
        APP,
    )
    # gm without an attack is on the grid already
    assert points(sweep) == [
        ("gm", "none"),
        ("gm", "alie"),
        ("krum", "none"),
        ("cwmed", "none"),
    ]


def test_what_is_given_counts_before_the_file_and_after_the_grid(plan):
    file = plan("[axes]\nseed = [1, 2]\n")
    sweep = Sweep.read(file, APP, "batch-size=8 num-nodes=7")
    configs = [run.config for run in sweep.runs]
    assert [c["seed"] for c in configs] == [1, 2]
    assert {(c["batch-size"], c["num-nodes"], c["local-steps"]) for c in configs} == {
        (8, 7, 1)
    }


def test_value_that_no_run_would_have_is_refused(plan):
    file = plan("[axes]\nseed = [1, 2]\n")
    for seed in (1, 9):  # also 1, which the run with seed 2 would lose
        with pytest.raises(ValueError, match=r"without `seed`.*`seed` in .*plan\.toml"):
            Sweep.read(file, APP, f"batch-size=8 seed={seed}")
    file = plan("[axes]\nseed = [1, 2]\n[[include]]\nbatch-size = 16\n")
    runs = Sweep.read(file, APP, "seed=9").runs  # the included run has no seed
    assert [run.config["seed"] for run in runs] == [1, 2, 9]


def test_folder_tells_the_configuration(plan):
    (one,) = Sweep.read(plan('[axes]\naggregator = ["ctma(gm)"]\n'), APP).runs
    (same,) = Sweep.read(plan('[axes]\naggregator = ["ctma(gm)"]\n'), APP).runs
    (other,) = Sweep.read(
        plan('[axes]\naggregator = ["ctma(gm)"]\n'), APP, "batch-size=8"
    ).runs
    assert one.name == same.name != other.name
    assert one.name.startswith("ctma-gm_")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[axis]\nseed = [1]\n", "run-config, axes, exclude, include"),
        ("[axes]\nsead = [1]\n", "Did you mean `seed`"),
        ('[axes]\nattack = ["sinflip"]\n', "Did you mean `signflip`"),
        ('[axes]\naggregator = ["ctma(kurm)"]\n', "Did you mean `krum`"),
        ("[axes]\nseed = [1\n", "a TOML file"),
        ("[axes]\nseed = []\n", r"plan.toml: .*`axes.seed` should be at least one"),
        ("", "hold at least one run"),
    ],
)
def test_mistake_is_told_before_any_run(plan, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sweep.read(plan(text), APP)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("axes = 3", "axes"),
        ("axes = [1]", "axes"),
        ("include = 3", "include"),
        ("include = [3]", "include"),
        ("[include]\nseed = 1", "include"),
        ("[axes]\nseed = [[1]]", "axes.seed"),
        ("[axes]\nseed = 1979-05-27", "axes.seed"),
        ("[axes.seed]\na = 1", "axes.seed"),
        ("[axes]\nseed = [1]\n[[exclude]]\nseed = []", "exclude.seed"),
        ("run-config = []", "run-config"),
        ("[run-config]\nseed = [1]", "run-config.seed"),
    ],
)
def test_wrong_shape_is_one_sentence_with_file_and_key(tmp_path, text, key):
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"plan\.toml.*`{key}` should be") as error:
        Sweep.read(file, APP)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ['{"seconds"', "[]", "", '{"seconds": "x"}'])
def test_damaged_file_costs_one_run(plan, tmp_path, damage):
    sweep = Sweep.read(plan("[axes]\nseed = [1, 2]\n"), APP)
    for run in sweep.runs:
        (tmp_path / run.name).mkdir()
        mark_finished(tmp_path / run.name, 1.0, "")
    assert len(sweep.saved(tmp_path)) == 2
    (tmp_path / sweep.runs[0].name / "ended.json").write_text(damage)
    assert [one.run for one in sweep.saved(tmp_path)] == [sweep.runs[1]]
    (tmp_path / sweep.runs[1].name / "rounds.jsonl").write_text('{"round"\n{}\n')
    assert sweep.unfinished(tmp_path) == [*sweep.runs]


def test_resumed_sweep_is_estimated_from_its_finished_runs(plan, tmp_path, monkeypatch):
    """Nothing is tried anew; a round of a client takes 0.25 seconds here."""
    monkeypatch.setattr(Sweep, "trials", None)
    rounds = '[axes]\n"num-server-rounds" = [2, 4, 6]\n"num-nodes" = [5, 10]'
    sweep = Sweep.read(plan(rounds), APP)
    sizes = [2 * 5, 2 * 10, 4 * 5, 4 * 10, 6 * 5, 6 * 10]
    for run, size in zip(sweep.runs[:3], sizes[:3], strict=True):
        (tmp_path / run.name).mkdir()
        RunFolder(tmp_path / run.name).append({"round": 1})
        mark_finished(tmp_path / run.name, size / 4, "")
    assert sweep.estimate(tmp_path, workers=1) == sum(sizes[3:]) / 4
    assert sweep.estimate(tmp_path, workers=2) == (30 + 60) / 4  # beside the 40


def sweep_command(file, output):
    command = [sys.executable, "-m", "flwr_ctma", "sweep", file]
    return subprocess.run(
        [*command, ROOT, "--output", output, "--workers", "1"],
        capture_output=True,
        text=True,
    )


def test_runs_are_made_once_and_failures_are_told(plan, tmp_path):
    """Plain averaging ends at a malformed reply; the other runs go on.

    Runs of seven clients have a table and a figure apart from those of five.
    """
    file = plan("""
    [axes]
    attack = ["none", "malformed"]
    aggregator = ["fedavg", "gm"]
    [[include]]
    num-nodes = 7
    num-malicious-nodes = [1, 2]
    """)
    output = tmp_path / "sweep"
    done = sweep_command(file, output)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("] ") >= 4
    assert "Failed: malformed_fedavg" in done.stderr
    rows = list(csv.DictReader((output / "rounds.csv").open()))
    assert len(rows) == 5 * 3
    assert {row["round"] for row in rows} == {"0", "2", "3"}
    assert {row["seed"] for row in rows} == {"1"}
    for n, f in ((5, 1), (7, 1), (7, 2)):
        assert f"{f} of {n} clients malicious" in done.stdout
        assert (output / f"scores-{n}.png").read_bytes().startswith(b"\x89PNG")
    assert not (output / "scores.png").exists()
    before = {p: p.stat().st_mtime_ns for p in output.glob("*/ended.json")}
    assert len(before) == 5
    again = sweep_command(file, output)
    assert "[6/6] malformed_fedavg" in again.stdout
    assert again.stdout.count("/6] ") == 1
    assert before == {p: p.stat().st_mtime_ns for p in output.glob("*/ended.json")}
    assert list(csv.DictReader((output / "rounds.csv").open())) == rows


def test_a_run_is_what_the_app_does_by_itself(plan, tmp_path):
    """Workers that keep the app loaded give the same bits, in any order."""
    from flwr_ctma.tracking.run_folder import RunFolder

    sweep = Sweep.read(plan("[axes]\nseed = [1, 2]\n"), APP)
    for state in sweep.run(tmp_path / "sweep", 1):
        assert not any(one.error for one in state.finished)
    app = FlowerApp(ROOT)
    for run in sweep.runs:
        app.simulate(5, {**run.config, "output": str(tmp_path / run.name)})
        alone = RunFolder(tmp_path / run.name).rounds()
        swept = RunFolder(tmp_path / "sweep" / run.name).rounds()
        assert [line["round"] for line in swept] == [0, 1, 2, 3]
        assert [r.get("loss") for r in swept] == [r.get("loss") for r in alone]


def test_two_sweeps_do_not_write_the_same_lines(plan, tmp_path):
    sweep = Sweep.read(plan('[axes]\naggregator = ["gm"]'), APP)
    first = sweep.run(tmp_path / "sweep", 1)
    next(first)
    with pytest.raises(ValueError, match="that no other process is using"):
        next(sweep.run(tmp_path / "sweep", 1))
    first.close()
    assert not next(sweep.run(tmp_path / "sweep", 1)).finished


def finished(accuracy, **point):
    config = {"num-nodes": 17, "num-server-rounds": 1, **point}
    line = {"round": 1, "accuracy": accuracy}
    return FinishedRun(PlannedRun(config, point), [line], seconds=1.0)


def test_scores_average_over_seeds_and_name_what_varies_besides():
    runs = [
        finished(
            accuracy, aggregator=rule, attack=attack, seed=seed, optimizer=optimizer
        )
        for rule, attack, seed, optimizer, accuracy in [
            ("gm", "alie", 1, "mu2", 0.5),
            ("gm", "alie", 2, "mu2", 0.7),
            ("gm", "none", 1, "mu2", 0.9),
            ("gm", "alie", 1, "sgd", 0.2),
        ]
    ]
    found = final_scores(runs)[0]
    assert found["gm optimizer=mu2"] == pytest.approx({"alie": 0.6, "none": 0.9})
    assert found["gm optimizer=sgd"] == {"alie": 0.2, "none": None}
    assert next(iter(found)) == "gm optimizer=mu2"
