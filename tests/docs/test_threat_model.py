"""Every promise of the threat model names a test that there is."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.pages import DOCS, Page

NAMED = dict.fromkeys(
    re.findall(r"`tests/([\w/]+\.py)::(test_\w+)`", Page(DOCS / "threat-model.md").text)
)


@pytest.mark.parametrize(
    ("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED]
)
def test_promise_is_tested(file, test):
    tree = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in tree.body if hasattr(node, "name")}


def test_every_promise_names_one():
    text = Page(DOCS / "threat-model.md").text
    promises = text.partition("## Promises")[2].partition("## Limits")[0]
    lines = [line for line in promises.splitlines() if re.match(r"\| [A-Z`]", line)]
    assert len(lines) > 15
    for line in lines:
        assert "::test_" in line, line
