"""Every claim with a number stands in its page, and its command exists."""

import re
import shlex

import pytest

from tests.benchmark.claims import read_claims
from tests.docs.test_commands import check
from tests.helpers.pages import ROOT

CLAIMS = read_claims()


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_text_of_a_claim_stands_in_its_page_with_its_value(claim):
    assert claim.text in (ROOT / claim.page).read_text(encoding="utf-8")
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", claim.text)]
    assert claim.value in numbers


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_command_of_a_claim_is_understood(claim, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert re.compile(claim.pattern).groups == 1
    for command in re.split(r" && | \| ", claim.command):
        words = shlex.split(command)
        if words[0] != "grep" and words[:2] != ["python", "-c"]:
            check(words)


def test_remade_claim_agrees():
    claim = CLAIMS["dp-ctma"]
    assert claim.agrees(claim.remake())


def test_value_beyond_the_tolerance_differs():
    claim = CLAIMS["dp-mean"]
    assert claim.agrees(claim.find("moves by 0.2222"))
    assert not claim.agrees(claim.find("moves by 0.23"))
    with pytest.raises(ValueError, match="no 'moves by"):
        claim.find("nothing")
