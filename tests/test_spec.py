"""The spelling of rules in a run-config."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import (
    ARC,
    CAF,
    CGE,
    CTMA,
    FLAME,
    LASA,
    MDA,
    NNM,
    RULES,
    SMEA,
    Aggregator,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clipping,
    CwMed,
    CwTM,
    Distinct,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Hierarchical,
    Huber,
    Krum,
    Layerwise,
    MeaMed,
    Mean,
    Medoid,
    MoNNA,
    MultiKrum,
    NormBound,
    SignGuard,
)
from flwr_ctma.aggregators.aliases import NEAREST, SAME
from flwr_ctma.attacks import ATTACKS
from flwr_ctma.spec import parse, spell

POSITIVE = st.floats(1e-9, 1e9)
BASES = st.one_of(
    st.sampled_from(
        [
            Mean(),
            CwMed(),
            CwTM(),
            MeaMed(),
            Krum(),
            Bulyan(),
            CAF(),
            CGE(),
            DnC(),
            Medoid(),
        ]
    ),
    st.sampled_from([Medoid(), FLTrust(), FLAME(), FoolsGold(), SignGuard()]),
    st.builds(Huber, st.none() | POSITIVE),
    st.builds(SignGuard, st.floats(0, 1), st.floats(1, 9)),
    st.builds(LASA, st.floats(0, 0.99), POSITIVE, POSITIVE),
    st.builds(GeometricMedian, st.floats(1e-12, 0.99)),
    st.builds(MultiKrum, st.none() | st.integers(1, 10**6)),
    st.builds(MDA, st.integers(1, 10**9)),
    st.builds(SMEA, st.integers(1, 10**9)),
    st.builds(MoNNA, st.integers(0, 999)),
    st.builds(CenteredClipping, POSITIVE, st.integers(1, 99)),
)
NESTED = st.recursive(
    BASES,
    lambda held: st.one_of(
        st.builds(CTMA, held),
        st.builds(NNM, held),
        st.builds(ARC, held),
        st.builds(Layerwise, held),
        st.builds(Clipping, held, POSITIVE),
        st.builds(Distinct, held, st.floats(0, 0.99)),
        st.builds(NormBound, held, st.floats(0.01, 1)),
        st.builds(
            Bucketing, held, st.none() | st.integers(1, 99), st.integers(0, 2**64)
        ),
        st.builds(
            Hierarchical,
            held,
            st.none() | held,
            st.none() | st.integers(1, 99),
            st.floats(0, 0.99),
            st.none() | st.integers(0, 2**64),
        ),
    ),
    max_leaves=4,
)
CHARACTERS = st.sampled_from([*RULES, *"(),=-_ .1e", "size", "seed", "true", "None"])


@given(NESTED)
@settings(deadline=None)
def test_what_is_spelled_is_parsed(rule):
    text = str(rule)
    assert parse_aggregator(text) == rule
    assert parse_aggregator(text.replace("-", "_").replace("e_", "e-")) == rule
    assert "_" not in text
    assert '"' not in text
    assert "'" not in text


@given(st.lists(CHARACTERS).map("".join) | st.text())
@example("cclip(radius={[]})")
@example("cclip(radius=" + "9" * 400 + ")")
@example("bucketing(cwmed, size=" + "9" * 400 + ")")
@example("(" * 250 + "gm" + ")" * 240)
@example("-" * 490 + "1")
@example("gm(tolerance=1e999)")
@example("\x00")
@example("\ud800")
@example("mean if gm else krum")
@example("lambda: gm")
@example("ctma(*gm)")
@example("ctma(**gm)")
@example("__import__('os').system('true')")
@settings(deadline=None, max_examples=300)
def test_whatever_is_written_is_a_rule_or_a_value_error(text):
    try:
        rule = parse_aggregator(text)
    except ValueError as error:
        assert "Parameter `aggregator` should be" in str(error)
        assert len(str(error)) < 2000
    else:
        assert type(rule) in RULES.values()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gmm", ["`gmm` is not a known name", "Did you mean `gm`?"]),
        (
            "arc(" * 65 + "gm" + ")" * 65,
            ["names are nested at most 64 deep", "arc(arc("],
        ),
        ("GeometricMedian", ["Did you mean `gm`? It converges, where ByzFL"]),
        ("nnm(Krum)", ["`Krum` is not a known name", "Did you mean `krum`? It sums"]),
        ("FedTrimmedAvg", ["Did you mean `cwtm`? It trims f", "⌊beta · n⌋"]),
        ("trimmean", ["Did you mean `cwtm`?"]),
        ("CTMA(gm)", ["`CTMA` is not a known name", "Did you mean `ctma`?"]),
        ("ctma", ["`ctma` needs base in parentheses"]),
        ("ctma(cwmedian)", ["`cwmedian` is not a known name", "Did you mean `cwmed`?"]),
        ("zzzzzz", ["`zzzzzz` is not one of arc, bucketing, "]),
        ("ctma", ["`ctma` needs base"]),
        ("ctma()", ["`ctma` needs base"]),
        ("gm(cwmed)", ["`gm` holds 0 value(s) and has 1", "tolerance=…"]),
        ("ctma(gm, cwmed)", ["`ctma` holds 1 value(s) and has 2"]),
        ("gm(tol=1e-3)", ["`gm` has no parameter `tol`", "tolerance=…"]),
        ("gm(1e-3)", ["`gm` holds 0 value(s) and has 1"]),
        ("ctma(gm, base=gm)", ["`ctma` has no parameter `base` to set"]),
        ("gm(tolerance=small)", ["`tolerance` of `gm` is a float, not 'small'"]),
        ("gm(tolerance=true)", ["`tolerance` of `gm` is a float, not True"]),
        ("multikrum(m=2.5)", ["`m` of `multikrum` is a int, not 2.5"]),
        ("gm(tolerance=2)", ["`tolerance` should be between 0 and 1, not 2.0"]),
        ("ctma(gm", ["written like `name(key=value)`"]),
        ("ctma gm", ["written like `name(key=value)`"]),
        ("gm; krum", ["written like `name(key=value)`"]),
        ("ctma['gm']", ["is not a name"]),
        ("'gm'", ["is not a name"]),
        ("os.system('true')", ["`os.system('true')` is not a name"]),
        ("", ["a name such as 'gm'"]),
        ("  ", ["a name such as 'gm'"]),
        ("gm" * 5000, ["a name such as 'gm'", "…"]),
        ("nnm(" * 200 + "gm" + ")" * 200, ["a name such as 'gm'"]),
        (None, ["a name such as 'gm'", "None"]),
        (3, ["a name such as 'gm'", "3"]),
        (b"gm", ["a name such as 'gm'"]),
    ],
)
def test_errors_name_the_part_that_is_wrong(text, parts):
    with pytest.raises(ValueError, match="Parameter `aggregator` should be") as info:
        parse_aggregator(text)
    for part in parts:
        assert part in str(info.value)
    assert len(str(info.value)) < 1000


def test_deep_nesting_means_what_it_says():
    rule = parse_aggregator("nnm(" * 60 + "gm" + ")" * 60)
    for _ in range(60):
        rule = rule.base
    assert rule == GeometricMedian()


def test_a_run_config_is_written_with_less_care():
    """Underscores, spaces, whole numbers for floats, keywords for what is held."""
    for text in (
        "  cclip( radius = 3,steps=2 ) ",
        "cclip(steps=2, radius=3.0)",
    ):
        assert parse_aggregator(text) == CenteredClipping(3.0, 2)
    assert parse_aggregator("ctma(base=nnm(base=cwmed))") == CTMA(NNM(CwMed()))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("average", Mean()),
        ("NNM(TrMean)", NNM(CwTM())),
        ("ctma(FedMedian)", CTMA(CwMed())),
        ("ARC(Meamed)", ARC(MeaMed())),
        ("MoNNA(pivot=2)", MoNNA(2)),
        ("Clipping(MDA, radius=2)", Clipping(MDA(), 2.0)),
    ],
)
def test_names_of_other_libraries_are_understood_where_definitions_agree(text, rule):
    assert parse_aggregator(text) == rule
    assert parse_aggregator(str(rule)) == rule


def test_other_names_point_to_rules_and_hide_none():
    assert set(SAME.values()) | {name for name, _ in NEAREST.values()} <= set(RULES)
    assert not set(RULES) & (set(SAME) | set(NEAREST))
    assert not set(SAME) & set(NEAREST)


def test_defaults_are_left_out():
    assert str(CTMA(Bucketing(GeometricMedian(), size=2))) == (
        "ctma(bucketing(gm, size=2))"
    )
    assert str(GeometricMedian(tolerance=1e-4)) == "gm(tolerance=0.0001)"


@pytest.mark.parametrize("table", [RULES, ATTACKS], ids=["rules", "attacks"])
def test_names_are_what_a_run_config_can_hold(table):
    for name, kind in table.items():
        assert name.replace("-", "").isalnum()
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen


def test_strings_and_booleans_are_spelled_without_quotes():
    @dataclasses.dataclass(frozen=True)
    class Example:
        word: str = "left"
        flag: bool = False

    table = {"example": Example}
    assert spell(Example("right-hand", True), table) == (
        "example(word=right-hand, flag=true)"
    )
    for value in (Example(), Example("right-hand", True)):
        assert parse(spell(value, table), table, "example") == value


@dataclasses.dataclass(frozen=True)
class Quoted(Aggregator):
    """A rule of somebody whose module imports annotations from the future."""

    base: "Aggregator"
    rows: "tuple[int, ...]" = ()
    keep: "bool" = True
    sizes: tuple[int, ...] = (1,)

    def _point(self, rows, budget):
        return self.base.solve(rows, budget)


def test_a_rule_of_ones_own_may_declare_what_it_likes():
    rule = Quoted(CwMed(), rows=(3,), keep=False)
    assert rule(np.array([[1.0], [2.0], [9.0]]), f=1) == 2
