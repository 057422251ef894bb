"""Who is asked in a round, and how many of them may be malicious."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import INFO

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.aggregators import Aggregator
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.guarantee import log_guarantee
from flwr_ctma.strategy.round.replies import Round
from flwr_ctma.strategy.round.report import warn_of_majority
from flwr_ctma.strategy.round.tolerance import Tolerance
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["NodeSelection"]


class NodeSelection:
    """Settles whom to ask, and tells once what that is worth.

    Parameters
    ----------
    aggregator : Aggregator
        The rule whose promise is told.
    num_malicious_nodes, max_rejections
        As for `RobustStrategy`.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        num_malicious_nodes: int | float,
        max_rejections: int | None,
    ) -> None:
        if max_rejections is not None and max_rejections < 1:
            raise parameter_error(
                "max_rejections", "at least 1, or None", max_rejections
            )
        self._aggregator = aggregator
        self._tolerance = Tolerance(num_malicious_nodes)
        self._max_violations = max_rejections
        self._told: set[tuple[str, int, int]] = set()

    def expect(self, num_rounds: int) -> None:
        """Prepare for so many rounds in which nodes are sampled."""
        self._tolerance = replace(self._tolerance, rounds=max(num_rounds, 1))

    def select(
        self, phase: str, messages: Iterable[Message], grid: Grid, ledger: Ledger
    ) -> Round:
        """Settle who is asked, and how many of them may be malicious."""
        asked = list(messages)
        if not asked:
            return Round([], 0)
        size, connected = len(asked), len(list(grid.get_node_ids()))
        f = self._tolerance.among(size, connected)
        if (phase, size, connected) not in self._told:
            self._told.add((phase, size, connected))
            warn_of_majority(phase, size, connected, self._tolerance)
            if phase == "train":
                log_guarantee(self._aggregator, size, f)
        excluded = self._excluded(asked, ledger)[: min(f, (size - 1) // 2)]
        if excluded:
            log(INFO, "configure_%s: Nodes %s are excluded", phase, excluded)
        asked = [m for m in asked if m.metadata.dst_node_id not in excluded]
        return Round(asked, f, excluded)

    def _excluded(self, asked: Sequence[Message], ledger: Ledger) -> list[int]:
        """Give those who have violated the protocol too often, the worst first."""
        if self._max_violations is None:
            return []
        nodes = {message.metadata.dst_node_id for message in asked}
        violators = ledger.violators(self._max_violations)
        return [node for node in violators if node in nodes]
