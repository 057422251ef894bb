"""The table of wrappers on the page is the table that the tests hold."""

from tests.helpers.pages import DOCS, Page
from tests.strategy.test_wrappers import TABLE


def test_table_of_wrappers_is_that_of_the_tests():
    text = Page(DOCS / "combining.md").text
    table = text.partition("| outer ↓, inner → |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ")[1:] for line in table.splitlines()[2:]]
    marks = ["".join({"works": ".", "no": "x"}[cell] for cell in row) for row in rows]
    assert marks == [*TABLE.values()]
