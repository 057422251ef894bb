"""What happened in a round of asynchronous training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import MetricRecord

from flwr_ctma.strategy.round.metrics import trimmed_mean
from flwr_ctma.tracking.detectors import Observation

__all__ = ["RoundStatistics"]


@dataclass
class RoundStatistics:
    """Which nodes delivered, and how many steps that caused.

    Attributes
    ----------
    steps : int
        Steps of the server.
    counted : int
        Updates that were counted: good ones of nodes below their cap.
    accepted : list of int
        The nodes of all good replies, in the order of arrival.
    rejected : dict of str by node
        The reasons for which replies were rejected.
    failed : set of int
        Nodes that answered with an error, or whose answer was lost.
    waiting : set of int
        Nodes with unanswered messages at the end.
    trimmed : list of int, or None
        Nodes whose updates had no weight in the last step; None without any step.
    excluded : set of int
        Nodes that get no work.
    sent, received : int
        Bytes, in arrays.
    """

    steps: int = 0
    counted: int = 0
    accepted: list[int] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    trimmed: list[int] | None = None
    excluded: set[int] = field(default_factory=set)
    sent: int = 0
    received: int = 0

    @property
    def arrivals(self) -> int:
        """The number of replies, good or not."""
        return len(self.accepted) + len(self.rejected) + len(self.failed)

    def resting(self) -> set[int]:
        """Return the nodes that get no more work in this round."""
        return self.failed | self.rejected.keys()

    def observation(self) -> Observation:
        """Return what each node did, for detectors."""
        return Observation(
            self.accepted,
            trimmed=self.trimmed or [],
            rejected=list(self.rejected.items()),
            missing=list(self.failed),
        )

    def report(self, claims: Sequence[MetricRecord], f: int | float) -> MetricRecord:
        """Return the metrics of the round.

        Parameters
        ----------
        claims : sequence of MetricRecord
            The latest metrics of each client, of which f may be lies.
        f : int | float
            A count or a share.
        """
        liars = f if isinstance(f, int) else math.ceil(f * len(claims))
        report = MetricRecord()
        if len(claims) > 2 * liars:
            report.update(trimmed_mean(claims, liars)[0])
        report["arrivals"] = self.arrivals
        report["updates-counted"] = self.counted
        report["steps"] = self.steps
        report["replies-accepted"] = len(self.accepted)
        report["replies-rejected"] = len(self.rejected)
        heard = {*self.accepted, *self.rejected}
        report["nodes-asked"] = sorted(heard | self.failed | self.waiting)
        report["nodes-missing"] = sorted((self.failed | self.waiting) - heard)
        report["nodes-rejected"] = list(self.rejected)
        if self.excluded:
            report["nodes-excluded"] = sorted(self.excluded)
        if self.trimmed is not None:
            report["nodes-trimmed"] = self.trimmed
        report["bytes-sent"] = self.sent
        report["bytes-received"] = self.received
        return report
