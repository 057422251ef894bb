"""Tables that spreadsheets may open."""

import csv

import pytest

from flwr_ctma.experiments.csv_table import write_csv


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1"]
)
def test_formula_is_written_as_text(tmp_path, text):
    write_csv(tmp_path / "t.csv", [{text: text, "n": -1.5}])
    (header, row) = csv.reader((tmp_path / "t.csv").open(newline=""))
    assert header[0] == row[0] == f"'{text}"
    assert row[1] == "-1.5"


def test_columns_are_those_of_all_rows(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": 1}, {"b": [1, 2]}, {"a": "\ud800"}])
    rows = list(csv.reader((tmp_path / "t.csv").open(newline="", encoding="utf-8")))
    assert rows == [["a", "b"], ["1", ""], ["", "[1, 2]"], ["?", ""]]
