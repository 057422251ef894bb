"""Rules and attacks that the modules of an app define."""

import shutil
from pathlib import Path

import pytest

from flwr_ctma.aggregators import RULES
from flwr_ctma.attacks import ATTACKS
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.experiments.names import check_names
from flwr_ctma.experiments.sweep import check_values
from flwr_ctma.experiments.tournament import Match, Tournament

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart-numpy"
MINE = '''"""A rule and an attack of this app."""

from dataclasses import dataclass

from flwr_ctma.aggregators import Mean
from flwr_ctma.attacks import IPM


@dataclass(frozen=True)
class OwnRule(Mean, name="ownrule"):
    """The mean, under another name."""


@dataclass(frozen=True)
class OwnAttack(IPM, name="ownattack"):
    """IPM, under another name."""
'''


@pytest.fixture
def app(tmp_path) -> FlowerApp:
    """A copy of an example whose server imports a rule and an attack of its own."""
    folder, package = tmp_path / "app", f"p{abs(hash(tmp_path))}"
    shutil.copytree(EXAMPLE, folder)
    (folder / "numpyexample").rename(folder / package)
    for file in (*(folder / package).glob("*.py"), folder / "pyproject.toml"):
        text = file.read_text(encoding="utf-8").replace("numpyexample", package)
        file.write_text(text, encoding="utf-8")
    (folder / package / "mine.py").write_text(MINE, encoding="utf-8")
    server = folder / package / "server_app.py"
    code = server.read_text(encoding="utf-8")
    server.write_text(f"{code}\nimport {package}.mine\n", encoding="utf-8")
    yield FlowerApp(folder)
    RULES.pop("ownrule", None)
    ATTACKS.pop("ownattack", None)


def test_tournament_runs_the_rule_and_the_attack_of_an_app(app, tmp_path):
    """In processes of their own, which import the app anew."""
    config = app.run_config("num-server-rounds=2")
    planned = Tournament(str(app.path), config, 10, "accuracy", 1)
    plan = planned.matches(["mean", "ctma(ownrule)"], ["ownattack"], [3], [0])
    results = dict(planned.run(plan, tmp_path / "runs", 1))
    assert {one.status for one in results.values()} == {"finished"}
    same = planned.run_match(Match("mean", "ipm", 3, 0)).value
    assert results[Match("mean", "ownattack", 3, 0)].value == same


def test_values_of_an_app_may_name_its_own(app):
    config = {"aggregator": "nnm(ownrule)", "attack": "both(zero, noise)"}
    check_values(app, {**app.run_config(), **config})
    with pytest.raises(ValueError, match="Did you mean `ownrule`"):
        check_names(app, ["ownrul"], [])


def test_unknown_name_of_an_app_that_cannot_be_imported_says_both(tmp_path):
    toml = (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(toml.replace("numpyexample", "gone"))
    check_names(FlowerApp(tmp_path), ["gm", "fedavg"], ["alie"])  # nothing is imported
    with pytest.raises(ValueError, match=r"`faba` is not one of .*cannot be imported"):
        check_names(FlowerApp(tmp_path), ["faba"], [])
