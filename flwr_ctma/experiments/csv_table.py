"""Tables of results as CSV files that spreadsheets may open."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_csv"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, with a column for each key in any row.

    Spreadsheets run a cell that begins with `=`, `+`, `-` or `@`. Such text gets an
    apostrophe in front, unless it is a number. Lists and tables are written as JSON.

    Parameters
    ----------
    path : Path
        The file; it is overwritten.
    rows : iterable of Mapping[str, Any]
        The rows; a missing key is an empty cell.
    """
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow([_cell(name) for name in names])
        writer.writerows([[_cell(row.get(name)) for name in names] for row in rows])


def _cell(value: Any) -> Any:
    """Return the cell for a value.

    Examples
    --------
    >>> _cell("=1+1"), _cell("-0.5"), _cell(-0.5), _cell([1, 2])
    ("'=1+1", '-0.5', -0.5, '[1, 2]')
    """
    if isinstance(value, list | dict):
        return json.dumps(value)
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
