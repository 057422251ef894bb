"""The nodes that are asked in a round, and how many of them may be malicious."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from numbers import Integral
from typing import NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.aggregators import Aggregator
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.compatibility import check_rule, min_rows
from flwr_ctma.strategy.guarantee import log_guarantee
from flwr_ctma.strategy.round.report import warn_of_majority
from flwr_ctma.strategy.round.tolerance import Tolerance
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["NodeSelection", "Selected"]


class Selected(NamedTuple):
    """The messages to send, f, and the nodes that are excluded."""

    asked: list[Message]
    f: int
    excluded: list[int]


class NodeSelection:
    """Decide which nodes are asked, and log once what that guarantees.

    Parameters
    ----------
    aggregator : Aggregator
        The rule of the run.
    weighted : bool
        Whether the rule is given weights.
    tolerance : Tolerance
        How many nodes may be malicious.
    max_rejections, node_timeout
        As for `RobustStrategy`.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        weighted: bool,
        tolerance: Tolerance,
        max_rejections: int | None,
        node_timeout: float,
    ) -> None:
        if max_rejections is not None and not _is_count(max_rejections):
            raise parameter_error(
                "max_rejections", "a count, at least 1, or None", max_rejections
            )
        if not isinstance(node_timeout, int | float) or not node_timeout >= 0:
            raise parameter_error("node_timeout", "at least 0 seconds", node_timeout)
        self._aggregator = aggregator
        self._weighted = weighted
        self._tolerance = tolerance
        self._max_rejections = max_rejections
        self._node_timeout = node_timeout
        self._logged: set[tuple[str, int, int]] = set()

    def expect(self, num_rounds: int) -> None:
        """Prepare for this many rounds in which nodes are sampled."""
        self._tolerance = replace(self._tolerance, rounds=max(num_rounds, 1))

    def wait(self, grid: Grid, is_needed: bool) -> None:
        """Wait until as many nodes are connected as the rule needs.

        Where all nodes are in this process, there is nothing to wait for.

        Parameters
        ----------
        grid : Grid
        is_needed : bool
            Whether to raise an error if the nodes do not connect in time, or to warn.

        Raises
        ------
        RuntimeError
            If the nodes do not connect in time.
        """
        began = time.monotonic()
        while True:
            connected = len(set(grid.get_node_ids()))
            f = self._tolerance.of(connected)
            needed = min_rows(self._aggregator, f, self._weighted)
            if connected >= needed:
                return
            if _is_fixed(grid) or time.monotonic() - began >= self._node_timeout:
                sentence = (
                    f"{connected} nodes are connected; {self._aggregator} needs "
                    f"{needed} against {f} malicious ones. Start more nodes (Flower's "
                    f"simulation: `--federation-config num-supernodes={needed}`), or "
                    "lower `num_malicious_nodes`."
                )
                if is_needed:
                    raise RuntimeError(sentence)
                log(WARNING, "%s", sentence)
                return
            log(
                INFO,
                "Waiting for nodes to connect: %d connected (%s needs %d against %d "
                "malicious ones).",
                *(connected, self._aggregator, needed, f),
            )
            time.sleep(1)

    def select(
        self, phase: str, messages: Iterable[Message], grid: Grid, ledger: Ledger
    ) -> Selected:
        """Return the messages to send without those to excluded nodes, and f."""
        asked = list(messages)
        if not asked:
            return Selected([], 0, [])
        size, connected = len(asked), len(list(grid.get_node_ids()))
        f = self._tolerance.among(size, connected)
        if (phase, size, connected) not in self._logged:
            is_first = not self._logged
            self._logged.add((phase, size, connected))
            warn_of_majority(phase, size, connected, self._tolerance)
            if phase == "train" and 2 * f < size:
                if is_first:
                    check_rule(self._aggregator, size, f, self._weighted)
                log_guarantee(self._aggregator, size, f)
        excluded = self._excluded(asked, ledger)[: min(f, (size - 1) // 2)]
        if excluded:
            log(INFO, "configure_%s: Nodes %s are excluded", phase, excluded)
        asked = [m for m in asked if m.metadata.dst_node_id not in excluded]
        return Selected(asked, f, excluded)

    def _excluded(self, asked: Sequence[Message], ledger: Ledger) -> list[int]:
        """Return the nodes with too many rejected replies, the worst first."""
        if self._max_rejections is None:
            return []
        nodes = {message.metadata.dst_node_id for message in asked}
        violators = ledger.violators(self._max_rejections)
        return [node for node in violators if node in nodes]


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return int(value) >= 1


def _is_fixed(grid: object) -> bool:
    """Whether all nodes of a grid are in this process, so that no more will connect."""
    while not isinstance(grid, InProcessGrid):
        grid = getattr(grid, "grid", None)
        if grid is None:
            return False
    return True
