"""Files of JSON: objects line by line, and whole files that are replaced at once."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["append_line", "read_json", "read_json_lines", "write_json"]


def read_json_lines(path: Path) -> list[dict[str, Any] | None]:
    r"""Read a file with one JSON object in each line.

    Parameters
    ----------
    path : Path
        The file; it may not exist yet.

    Returns
    -------
    list of dict or None
        One item for each finished line; None for a line without a JSON object. A last
        line without a line break is still being written and is left out.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lines.jsonl"
    >>> _ = path.write_text('{"round": 1}\n{"round"\n{"round": 3}\n{"rou')
    >>> read_json_lines(path)
    [{'round': 1}, None, {'round': 3}]
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [_object(line) for line in data.split(b"\n")[:-1]]


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file that holds one JSON object; None if there is none."""
    try:
        return _object(path.read_bytes())
    except FileNotFoundError:
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that readers see the old file or the new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; it replaces an unfinished last line.

    A full disk or a killed process leaves such a line.
    """
    with path.open("a+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        if end < size:
            file.truncate(end)
        file.write(f"{line}\n".encode())


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
