"""The folder of a run: its configuration, its versions, and a line for each round.

The ServerApp writes the folder while it trains. The command line reads it, also while
the ServerApp still writes.
"""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr_ctma.compat import log
from flwr_ctma.tracking.json_lines import append_line, read_json_lines

__all__ = ["RunFolder"]

_PACKAGES = ("flwr-ctma", "flwr", "ray", "torch", "numpy", "flwr-datasets")


@dataclass(frozen=True)
class RunFolder:
    """Folder of one run: `config.json`, `versions.json` and `rounds.jsonl`.

    Parameters
    ----------
    path : Path
        The folder; it need not exist.

    Examples
    --------
    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()) / "run")
    >>> folder.begin({"seed": 1})
    >>> folder.append({"round": 0, "accuracy": 0.1})
    >>> folder.append({"round": 1, "accuracy": float("nan")})
    >>> folder.rounds()
    [{'round': 0, 'accuracy': 0.1}, {'round': 1, 'accuracy': None}]
    """

    path: Path

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write configuration and versions; delete the rounds of a former run."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "rounds.jsonl").unlink(missing_ok=True)
        for name, values in (("config", config), ("versions", _versions())):
            text = json.dumps(_plain(values), indent=2) + "\n"
            (self.path / f"{name}.json").write_text(text, encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        """Append the line of one round."""
        append_line(self.path / "rounds.jsonl", json.dumps(_plain(record)))

    def rounds(self) -> list[dict[str, Any]]:
        """Return the finished lines of the rounds.

        The log has a warning for lines that hold no JSON object.
        """
        lines = [*read_json_lines(self.path / "rounds.jsonl")]
        spoiled = lines.count(None)
        if spoiled:
            log(WARNING, "%s: %d lines are no JSON objects.", self.path, spoiled)
        return [line for line in lines if line is not None]


@cache  # read again in each run of a sweep, it would take a tenth of a short run
def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """Convert a value for JSON: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
