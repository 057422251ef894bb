"""Attacks register themselves, and names of other libraries are translated."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from flwr_ctma.attacks import ATTACKS, Attack, Both, iter_attacks, parse_attack
from flwr_ctma.attacks.elsewhere import ELSEWHERE, translate

PAGE = Path(__file__).parents[2] / "docs" / "attacks.md"


def test_a_named_subclass_is_spelled_and_read():
    @dataclass(frozen=True)
    class Half(Attack, name="half"):
        factor: float = 0.5

    try:
        attack = parse_attack("both(half(factor=0.25), zero)")
        assert attack.first == Half(0.25)
        assert str(attack) == "both(half(factor=0.25), zero)"
    finally:
        del ATTACKS["half"]


def test_attack_with_a_taken_name_is_refused():
    with pytest.raises(
        ValueError, match=r"Parameter `name` should be free.*IPM has it"
    ):

        class Other(Attack, name="ipm"):
            pass

    assert ATTACKS["ipm"].__name__ == "IPM"


def test_a_subclass_without_a_name_is_not_in_the_table():
    class Helper(Attack):
        pass

    assert Helper not in ATTACKS.values()


def test_iter_attacks_visits_inner_attacks_depth_first():
    attack = parse_attack("during(both(signflip, both(zero, replay)), start=2)")
    names = [type(part).__name__ for part in iter_attacks(attack)]
    assert names == ["During", "Both", "SignFlip", "Both", "Zero", "Replay"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("SignFlipping", r"`SignFlipping` of ByzFL is `ipm\(epsilon=1\)` here"),
        ("jitter(Little, scale=1)", "`Little` of krum is `alie` here"),
        ("FOE", "`FOE` of the literature is `ipm` here"),
        ("ALIEAdversary", r"`ALIE` of Blades is `mirror\(alie\)` here"),
        ("during(ModelReplacement, start=3)", r"`both\(backdoor, scaling"),
        ("stale", "`replay`"),
    ],
)
def test_name_of_another_library_is_refused_with_ours(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_attack(text)


def test_parameter_value_is_not_translated_as_a_name():
    """ByzFL calls an attack `Inf`; here `inf` is also a value."""
    assert str(parse_attack("nonfinite(value=inf)")) == "nonfinite(value=inf)"
    assert translate("inf")


def test_translations_name_attacks_that_exist():
    for names in ELSEWHERE.values():
        for here in names.values():
            words = re.findall(r"(?<![=\w])[a-z]\w*(?![\w=])", here)
            assert set(words) - {"attack"} <= set(ATTACKS), here


def test_attacks_page_has_the_table_of_names():
    page = PAGE.read_text(encoding="utf-8")
    for library, names in ELSEWHERE.items():
        for there, here in names.items():
            assert re.search(rf"\| {library} \| `{there}` \| `{re.escape(here)}`", page)


def test_both_with_nested_colluders_is_refused():
    with pytest.raises(ValueError, match="that a client can mount alone"):
        Both(parse_attack("zero"), parse_attack("alternate(zero, alie)"))
