"""`check` before a call: it raises exactly if a call with such rows raises."""

import numpy as np
import pytest

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import RULES, Aggregator, Mean, iter_rules
from tests.helpers.table import everyone

ROWS = np.random.default_rng(0).standard_normal((14, 3))
BUDGETS = [0, 1, 2, 3, 6, 0.0, 0.1, 0.3, 0.49]


def outcome(call):
    """Return the sentence of a ValueError, or None."""
    try:
        call()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rule", everyone())
def test_check_raises_exactly_if_a_call_raises(rule, weighted):
    given = rule.given(np.ones(3))
    for n in range(1, len(ROWS) + 1):
        weights = {"weights": np.arange(1.0, n + 1)} if weighted else {}
        for f in BUDGETS:
            said = outcome(lambda n=n, f=f: rule.value.check(n, f, weighted))
            called = outcome(
                lambda n=n, f=f, w=weights: rule(ROWS[:n], f, **w, **given)
            )
            assert said == called, (n, f)


@pytest.mark.parametrize("rule", everyone())
def test_least_number_of_rows_is_the_smallest_that_passes(rule):
    for f in range(3):
        n = rule.value.min_rows(f)
        if "hierarchical" not in rule.spec:
            assert n == rule.least(f)
            assert outcome(lambda f=f, n=n: rule.value.check(n - 1, f))
        if "monna(pivot=2)" not in rule.spec and "m=2" not in rule.spec:
            assert not outcome(lambda f=f: rule.value.check(rule.least(f), f))


def test_meta_rule_checks_its_base_with_the_rows_that_the_base_sees():
    """12 rows make 6 buckets: enough for Krum with f = 1, which needs 5, not with 2."""
    rule = parse_aggregator("bucketing(krum, size=2)")
    rule.check(12, 1)
    with pytest.raises(ValueError, match="at least 7 for n = 12 and f = 2"):
        rule.check(12, 2)
    assert rule.min_rows(1) == 9
    parse_aggregator("bucketing(krum)").check(12, 2)
    with pytest.raises(ValueError, match="None for krum"):
        parse_aggregator("ctma(nnm(krum))").check(12, 2, weighted=True)


def test_rule_with_a_name_can_be_spelled_and_a_second_one_is_refused():
    def run_cell():
        class Example(Mean, name="example"):
            pass

        return Example

    try:
        run_cell()
        assert str(parse_aggregator("ctma(example)")) == "ctma(example)"
        assert run_cell() is RULES["example"]
        with pytest.raises(ValueError, match=r"`name` should be free.*Example has it"):

            class Other(Aggregator, name="example"):
                pass

        assert RULES["example"].__name__ == "Example"
    finally:
        RULES.pop("example", None)


def test_rules_inside_a_rule_are_iterated_from_the_outside_in():
    rule = parse_aggregator("ctma(hierarchical(cwtm, gm))")
    assert list(map(str, iter_rules(rule))) == [
        "ctma(hierarchical(cwtm, gm))",
        "hierarchical(cwtm, gm)",
        "cwtm",
        "gm",
    ]


@pytest.mark.parametrize("rule", everyone(lambda rule: not rule.referenced))
def test_coefficients_make_the_vector_unless_coordinates_differ(rule):
    found = rule.value.weigh(ROWS, f=1)
    columnwise = ("cwmed", "cwtm", "meamed", "bulyan", "lasa")
    innermost = [str(part).partition("(")[0] for part in iter_rules(rule.value)]
    if found is None:
        assert set(innermost) & set(columnwise)
    else:
        np.testing.assert_allclose(found @ ROWS, rule(ROWS, f=1), atol=1e-9)


def test_coefficients_leave_out_the_reference():
    x = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = parse_aggregator("fltrust").weigh(x, f=1, reference=np.array([2.0, 0.0]))
    np.testing.assert_allclose(found, [1.0, 0.0, 1 / 3])
