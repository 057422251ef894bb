"""What the papers' experiments show, on a grid that takes minutes."""

from pathlib import Path

import pytest

from flwr_ctma.sweep import Sweep
from flwr_ctma.swept import final_scores

ROOT = Path(__file__).parent.parent
PAPERS = ROOT / "examples" / "papers"


@pytest.mark.parametrize("file", sorted(PAPERS.glob("*.toml")), ids=lambda f: f.stem)
def test_every_grid_can_be_planned(file):
    """No rule, attack or key is misspelled, and every run has a folder of its own."""
    sweep = Sweep.read(file, ROOT)
    assert len({run.name for run in sweep.runs}) == len(sweep.runs) > 0


@pytest.mark.long
def test_ctma_lifts_its_base_and_falls_behind_mixing_near_half(tmp_path):
    """Eight of seventeen: see docs/results/papers.md for MNIST."""
    sweep = Sweep.read(PAPERS / "p1-digits.toml", ROOT)
    ended = [one for state in sweep.play(tmp_path, 2) for one in state.ended]
    assert [one.why for one in ended] == [""] * len(sweep.runs)
    accuracy = final_scores(ended)[8]
    flipped = {rule: by["signflip"] for rule, by in accuracy.items()}
    assert flipped["ctma(cwmed)"] > flipped["cwmed"] + 0.1
    assert flipped["ctma(gm)"] > flipped["gm"] + 0.2
    assert flipped["nnm(cwmed)"] > flipped["ctma(cwmed)"] + 0.05
    manipulated = {rule: by["ipm(epsilon=0.5)"] for rule, by in accuracy.items()}
    assert max(manipulated["ctma(cwmed)"], manipulated["ctma(gm)"]) < 0.15
    assert manipulated["nnm(cwmed)"] == max(manipulated.values())
