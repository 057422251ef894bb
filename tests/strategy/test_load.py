"""Large rounds and long runs stay within the memory that they are given."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = Path(__file__).parents[1] / "benchmark" / "load.py"


def told(*arguments):
    """Run the script in a process of its own; give what it prints."""
    command = [sys.executable, str(LOAD), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.long
@pytest.mark.parametrize("size", [("1000", "1e5"), ("17", "1e7")])
def test_a_round_takes_a_quarter_more_than_its_messages_and_the_model(size):
    found = re.search(r"peak .* GB: ([\d.]+) of the bound", told("round", *size))
    assert float(found[1]) <= 1


@pytest.mark.long
def test_memory_is_flat_over_a_run(tmp_path):
    """A model that is kept from each round would add 40 MB."""
    printed = told("soak", "200", str(tmp_path / "soak.png"))
    *_, line = (one for one in printed.splitlines() if one.startswith("MB"))
    _, second, _, fourth = map(float, re.findall(r"\d+\.\d", line))
    assert fourth - second < 10
