"""The lines of a run, which name partitions in place of nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clients.config import RunConfig
from flwr_ctma.tracking.run_folder import RunFolder

__all__ = ["Journal"]

_LISTS = ("asked", "missing", "rejected", "trimmed", "suspected", "misreporting")


@dataclass(frozen=True)
class Journal:
    """A callback of `Observed` that writes a line for each round to the run folder.

    Parameters
    ----------
    folder : RunFolder
        The folder.
    config : RunConfig
        Says which partitions are malicious.
    partitions : dict[int, int]
        The partition of each node, by node id. Partitions are known to be malicious or
        not; a node without one is named by its id.
    """

    folder: RunFolder
    config: RunConfig
    partitions: dict[int, int]

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Write the line of a round."""
        if "asked" in line and "replies-accepted" not in line:  # FedAvg counts them all
            line = {**line, "rejected": [], "trimmed": []}
        named: dict[str, Any] = {
            key: sorted(self.partitions.get(node, node) for node in line[key])
            for key in _LISTS
            if key in line
        }
        if "asked" in named and self.config.attack != "none":
            dropped = [named.get(key, []) for key in ("missing", "rejected", "trimmed")]
            kept = set(named["asked"]).difference(*dropped)
            named["malicious-kept"] = sum(map(self.config.is_malicious, kept))
        self.folder.append({**line, **named})
