"""The example rule of CONTRIBUTING.md."""

import doctest
import re
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import RULES
from tests.aggregators.test_laws import CHECKS
from tests.helpers import oracles, table

TEXT = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def added(monkeypatch):
    """Return the module of the rule, and its row of the table."""
    if not TEXT.exists():
        pytest.skip("outside of the source tree")
    section = TEXT.read_text(encoding="utf-8").partition("## Add a rule\n")[2]
    blocks = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.S)
    rule, oracle, line = map(textwrap.dedent, blocks)
    module = ModuleType("faba")
    exec(compile(rule, "faba.py", "exec"), vars(module))
    monkeypatch.setattr(oracles, "faba", None, raising=False)
    exec(oracle, vars(oracles))
    yield module, eval(line, vars(table))
    del RULES["faba"]


def test_rule_of_the_example_is_its_oracle_and_obeys_the_laws(added):
    module, rule = added
    found = rule(table.GOLDEN, f=2)
    np.testing.assert_allclose(found, rule.golden, atol=3e-6)
    np.testing.assert_allclose(found, rule.oracle(table.GOLDEN, 2))
    rng = np.random.default_rng(0)
    for seed in range(20):
        x, reference = rng.standard_normal((9, 3)), rng.standard_normal(3)
        np.testing.assert_allclose(rule(x, 2), rule.oracle(x, 2))
        for law in set(CHECKS) - set(rule.exempt) - {"repetition"}:
            CHECKS[law](rule, x, 2, reference, seed)
    for law in rule.exempt:
        with pytest.raises(AssertionError):
            CHECKS[law](rule, x, 2, reference, 0)
    assert doctest.testmod(module).attempted == 2
    assert doctest.testmod(module).failed == 0


def test_every_meta_rule_knows_the_rule_of_the_example(added):
    rule = parse_aggregator("ctma(nnm(faba))")
    assert str(rule) == "ctma(nnm(faba))"
    assert rule(table.GOLDEN, f=2).shape == (3,)
