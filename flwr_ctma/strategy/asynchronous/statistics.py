"""What happened in a round of arrivals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import MetricRecord

from flwr_ctma.strategy.round.metrics import trimmed_mean
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["RoundStatistics"]


@dataclass
class RoundStatistics:
    """Who delivered, and how many steps that led to.

    Attributes
    ----------
    steps : int
        Of the server.
    accepted : list of int
        Nodes by good replies, in the order of their arrival.
    rejected : dict of str by node
        Why a reply was rejected.
    failed : set of int
        Nodes that answered with an error, or whose answer was lost.
    waiting : set of int
        Nodes with work on their way at the end.
    trimmed : list of int, or None
        Nodes whose updates counted nothing at the last step; None without any step.
    sent, received : int
        Bytes, in arrays.
    """

    steps: int = 0
    accepted: list[int] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    trimmed: list[int] | None = None
    sent: int = 0
    received: int = 0

    @property
    def arrivals(self) -> int:
        """All that came of messages, good or not."""
        return len(self.accepted) + len(self.rejected) + len(self.failed)

    def resting(self) -> set[int]:
        """Nodes that get no more work in this round."""
        return self.failed | self.rejected.keys()

    def enter(self, ledger: Ledger) -> None:
        """Note in the ledger what each node did."""
        ledger.note(
            self.accepted,
            trimmed=self.trimmed or [],
            rejected=list(self.rejected.items()),
            missing=list(self.failed),
        )

    def report(self, claims: Sequence[MetricRecord], f: int | float) -> MetricRecord:
        """Sum the round up.

        Parameters
        ----------
        claims : sequence of MetricRecord
            What each client last said of itself, of which f may be lies.
        f : int | float
            A count or a share.
        """
        liars = f if isinstance(f, int) else math.ceil(f * len(claims))
        report = MetricRecord()
        if len(claims) > 2 * liars:
            report.update(trimmed_mean(claims, liars)[0])
        report["arrivals"] = self.arrivals
        report["steps"] = self.steps
        report["replies-accepted"] = len(self.accepted)
        report["replies-rejected"] = len(self.rejected)
        heard = {*self.accepted, *self.rejected}
        report["nodes-asked"] = sorted(heard | self.failed | self.waiting)
        report["nodes-missing"] = sorted((self.failed | self.waiting) - heard)
        report["nodes-rejected"] = list(self.rejected)
        if self.trimmed is not None:
            report["nodes-trimmed"] = self.trimmed
        report["bytes-sent"] = self.sent
        report["bytes-received"] = self.received
        return report
