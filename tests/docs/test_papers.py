"""What the papers' experiments show, on a grid that takes minutes."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.sweep import Sweep
from flwr_ctma.experiments.sweep_results import final_scores
from flwr_ctma.report.colours import line_styles
from flwr_ctma.tracking.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "examples" / "papers"


@pytest.mark.parametrize("file", sorted(PAPERS.glob("*.toml")), ids=lambda f: f.stem)
def test_every_grid_can_be_planned(file):
    """No rule, attack or key is misspelled, and every run has a folder of its own."""
    sweep = Sweep.read(file, FlowerApp(ROOT))
    assert len({run.name for run in sweep.runs}) == len(sweep.runs) > 0


@pytest.fixture
def swept(tmp_path):
    """Two rules with two seeds, one more run of one, and one that has not ended."""
    runs = [
        ("gm", "signflip", 1, [0.1, 0.4, 0.6]),
        ("gm", "signflip", 2, [0.1, 0.6, 0.8]),
        ("mean", "signflip", 1, [0.1, 0.1, 0.2]),
        ("mean", "signflip", 2, [0.1, 0.1, 0.2]),
        ("gm", "alie", 1, [0.1, 0.5, 0.9]),
        ("mean", "alie", 1, [0.1]),
    ]
    for rule, attack, seed, accuracies in runs:
        folder = RunFolder(tmp_path / f"{rule}_{attack}_{seed}")
        folder.begin({"aggregator": rule, "attack": attack, "seed": seed})
        for server_round, accuracy in enumerate(accuracies):
            folder.append({"round": server_round, "accuracy": accuracy})
            folder.append({"round": server_round, "loss": 1.0})  # not evaluated
        if len(accuracies) == 3:
            (folder.path / "ended.json").write_text("{}")
    return tmp_path


def script(name, *words):
    command = [sys.executable, PAPERS / name, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def colours_in(figure):
    return {c for _, c in Image.open(figure).convert("RGB").getcolors(1 << 24)}


def rule_colours():
    return {ImageColor.getrgb(s.colour) for s in line_styles(["gm", "mean"]).values()}


def test_ends_are_means_over_seeds_and_their_interval(swept):
    assert script("ends.py", swept).splitlines() == [
        "|  | gm | mean |",
        "|---|---|---|",
        "| alie | 90.0 |  |",
        "| signflip | 70.0 (60.0 to 80.0) | 20.0 (20.0 to 20.0) |",
    ]


def test_differences_are_taken_within_a_seed(swept):
    words = ["--row", "aggregator", "--column", "attack", "--less", "mean"]
    assert script("ends.py", swept, *words).splitlines() == [
        "|  | alie | signflip |",
        "|---|---|---|",
        "| gm |  | 50.0 (40.0 to 60.0) |",
    ]


def test_ends_are_drawn_with_a_panel_for_each_column(swept):
    two, one = swept / "two.png", swept / "one.png"
    words = ["--row", "aggregator", "--column", "attack"]
    script("ends.py", swept, *words, "--figure", two)
    script("ends.py", swept, *words, "--only", "attack=signflip", "--figure", one)
    assert Image.open(two).width > 1.5 * Image.open(one).width
    assert rule_colours() <= colours_in(two)


def test_ends_of_some_runs_over_their_last_evaluations(swept):
    words = ["--row", "aggregator", "seed", "--column", "attack", "--last", "2"]
    assert script("ends.py", swept, *words, "--only", "seed=2").splitlines() == [
        "|  | signflip |",
        "|---|---|",
        "| gm, 2 | 70.0 |",
        "| mean, 2 | 15.0 |",
    ]


def test_lines_have_a_panel_for_each_attack_and_tell_when_goals_are_reached(swept):
    two, one = swept / "two.png", swept / "one.png"
    told = script("lines.py", swept, two, "--panel", "attack", "--goals", "0.5")
    assert told.splitlines() == [
        "alie gm: 50% 1",
        "signflip gm: 50% 2, 1",
        "signflip mean: 50% never, never",
    ]
    assert not script("lines.py", swept, one, "--only", "attack=signflip")
    assert Image.open(two).width > 1.5 * Image.open(one).width
    assert rule_colours() <= colours_in(two)


@pytest.mark.long
def test_ctma_lifts_its_base_and_falls_behind_mixing_near_half(tmp_path):
    """Eight of seventeen: see docs/results/papers.md for MNIST."""
    sweep = Sweep.read(PAPERS / "p1-digits.toml", FlowerApp(ROOT))
    ended = [one for state in sweep.run(tmp_path, 2) for one in state.finished]
    assert [one.error for one in ended] == [""] * len(sweep.runs)
    accuracy = final_scores(ended)[8]
    flipped = {rule: by["signflip"] for rule, by in accuracy.items()}
    assert flipped["ctma(cwmed)"] > flipped["cwmed"] + 0.1
    assert flipped["ctma(gm)"] > flipped["gm"] + 0.2
    assert flipped["nnm(cwmed)"] > flipped["ctma(cwmed)"] + 0.05
    manipulated = {rule: by["ipm(epsilon=0.5)"] for rule, by in accuracy.items()}
    assert max(manipulated["ctma(cwmed)"], manipulated["ctma(gm)"]) < 0.15
    assert manipulated["nnm(cwmed)"] == max(manipulated.values())
