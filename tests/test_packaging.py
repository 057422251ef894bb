"""What an import costs, and that all places tell the same version."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import (
    PackageNotFoundError,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import flwr_ctma

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "ray", "matplotlib", "sklearn", "datasets", "pandas", "scipy"}
LIGHT = "aggregators tracking.callbacks sampling"
FLOWER = "attacks cli tracking.ledger legacy mods report simulation strategy.robust"


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


def installed_with(distribution, found):
    """Add a distribution and all that it requires, without extras."""
    found.add(canonicalize_name(distribution))
    for line in requires(distribution) or []:
        needed = Requirement(line)
        name = canonicalize_name(needed.name)
        if name in found or (needed.marker and not needed.marker.evaluate()):
            continue
        try:
            installed_with(name, found)
        except PackageNotFoundError:
            found.discard(name)
    return found


def test_the_command_line_needs_no_extra():
    """Whatever is installed here, it loads with what a plain installation brings."""
    plain = installed_with("flwr-ctma", set())
    absent = {
        package
        for package, distributions in packages_distributions().items()
        if not plain & set(map(canonicalize_name, distributions))
    }
    assert "torch" in absent and "flwr" not in absent
    hidden = f"import sys; sys.modules |= dict.fromkeys({absent!r})"
    command = f"{hidden}; import flwr_ctma.cli, flwr_ctma.strategy"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert flwr_ctma.__version__ == project["version"] == version("flwr-ctma")
    assert re.fullmatch(r"\d+\.\d+\.\d+", flwr_ctma.__version__)


@pytest.mark.benchmark
def test_import(benchmark):
    command = [sys.executable, "-c", "import flwr_ctma"]
    benchmark(subprocess.run, command, check=True)
