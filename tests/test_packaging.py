"""What an import costs, and that all places tell the same version."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import flwr_ctma

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "ray", "matplotlib", "sklearn", "datasets", "pandas", "scipy"}
LIGHT = "aggregators callbacks sampling"
FLOWER = "attacks cli ledger legacy mods report simulation strategy.robust"


@pytest.mark.parametrize(
    ("names", "heavy"), [(LIGHT, {*HEAVY, "flwr", "typer"}), (FLOWER, HEAVY)]
)
def test_an_import_loads_nothing_heavy(names, heavy):
    modules = ", ".join(f"flwr_ctma.{name}" for name in names.split())
    found = subprocess.run(
        [sys.executable, "-c", f"import {modules}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert heavy & set(found.stdout.split()) == set()


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert flwr_ctma.__version__ == project["version"] == version("flwr-ctma")
    assert re.fullmatch(r"\d+\.\d+\.\d+", flwr_ctma.__version__)


@pytest.mark.benchmark
def test_import(benchmark):
    command = [sys.executable, "-c", "import flwr_ctma"]
    benchmark(subprocess.run, command, check=True)
