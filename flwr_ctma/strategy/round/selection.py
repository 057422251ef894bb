"""The nodes that are asked in a round, and how many of them may be malicious."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from typing import NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.aggregators import Aggregator
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.guarantee import log_guarantee
from flwr_ctma.strategy.round.report import warn_of_majority
from flwr_ctma.strategy.round.tolerance import Tolerance, min_replies
from flwr_ctma.tracking.detectors import Exclusion

__all__ = ["NodeSelection", "Selected"]

_LOG_SECONDS = 60.0


class Selected(NamedTuple):
    """The messages to send, f, and the nodes that are excluded.

    Attributes
    ----------
    asked : list of Message
    f : int
        The most malicious nodes among the asked and the excluded ones.
    violators : list of node ids
        Excluded for proofs and faults: each of them counts as one of the f.
    suspects : list of node ids
        Excluded by the verdict of a detector, which proves nothing.
    """

    asked: list[Message]
    f: int
    violators: list[int]
    suspects: list[int]


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
    exclusion : Exclusion
        The nodes that are not asked.
    node_timeout : float
        As for `RobustStrategy`.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        weighted: bool,
        tolerance: Tolerance,
        exclusion: Exclusion,
        node_timeout: float,
    ) -> None:
        if not isinstance(node_timeout, int | float) or not node_timeout >= 0:
            raise parameter_error("node_timeout", "at least 0 seconds", node_timeout)
        self._aggregator = aggregator
        self._weighted = weighted
        self._tolerance = tolerance
        self._exclusion = exclusion
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
        began, logged = time.monotonic(), (-1, 0.0)
        while True:
            connected = len(set(grid.get_node_ids()))
            f = self._tolerance.of(connected)
            needed = max(self._aggregator.min_rows(f), min_replies(f))
            if connected >= needed:
                return
            remedy = (
                "Start more nodes (Flower's simulation: `flwr run . "
                f'--federation-config "num-supernodes={needed}"`; '
                f"in one process: `flwr-ctma simulate --num-nodes {needed}`), or lower "
                "`num_malicious_nodes`."
            )
            waited = time.monotonic() - began
            if _is_fixed(grid) or waited >= self._node_timeout:
                sentence = (
                    f"{connected} nodes are connected; {self._aggregator} needs "
                    f"{needed} against {f} malicious ones. {remedy}"
                )
                if is_needed:
                    raise RuntimeError(sentence)
                log(WARNING, "%s", sentence)
                return
            if connected != logged[0] or waited >= logged[1] + _LOG_SECONDS:
                log(
                    INFO,
                    "Waiting for nodes to connect: %d connected (%s needs %d against "
                    "%d malicious ones), up to %.0f s more. %s",
                    *(connected, self._aggregator, needed, f),
                    *(self._node_timeout - waited, remedy),
                )
                logged = connected, waited
            time.sleep(1)

    def select(self, phase: str, messages: Iterable[Message], grid: Grid) -> Selected:
        """Return the messages to send without those to excluded nodes, and f."""
        asked = list(messages)
        if not asked:
            return Selected([], 0, [], [])
        size, connected = len(asked), len(list(grid.get_node_ids()))
        f = self._tolerance.among(size, connected)
        if (phase, size, connected) not in self._logged:
            is_first = not self._logged
            self._logged.add((phase, size, connected))
            warn_of_majority(phase, size, connected, self._tolerance)
            if phase == "train" and 2 * f < size:
                if is_first:
                    self._aggregator.check(size, f, self._weighted)
                log_guarantee(self._aggregator, size, f)
        violators, suspects = self._excluded(asked, f)
        excluded = {*violators, *suspects}
        if excluded:
            log(INFO, "configure_%s: Nodes %s are excluded", phase, sorted(excluded))
        asked = [m for m in asked if m.metadata.dst_node_id not in excluded]
        return Selected(asked, f, violators, suspects)

    def _excluded(
        self, asked: Sequence[Message], f: int
    ) -> tuple[list[int], list[int]]:
        """Return the nodes to exclude: for proofs and faults, and by verdict.

        They are f together at most. A verdict excludes nobody whose reply the round
        needs to outvote f liars: it does not lower f.
        """
        nodes = {message.metadata.dst_node_id for message in asked}
        size = len(asked)
        violators = [node for node in self._exclusion.violators if node in nodes]
        del violators[min(f, (size - 1) // 2) :]
        found = len(violators)
        needed = max(min_replies(f, found), self._aggregator.min_rows(f - found))
        most = max(min(f - found, size - found - needed), 0)
        proven = set(self._exclusion.violators)
        suspects = [n for n in self._exclusion.nodes if n in nodes and n not in proven]
        return violators, suspects[:most]


def _is_fixed(grid: object) -> bool:
    """Whether all nodes of a grid are in this process, so that no more will connect."""
    while not isinstance(grid, InProcessGrid):
        grid = getattr(grid, "grid", None)
        if grid is None:
            return False
    return True
