"""The report of a round to the user: in the log, and in its metrics."""

from collections.abc import Iterable
from logging import INFO, WARNING

from flwr.app import MetricRecord

from flwr_ctma.compat import log
from flwr_ctma.messages.schema import Rejection
from flwr_ctma.strategy.round.replies import InspectedReplies, Round
from flwr_ctma.strategy.round.tolerance import Tolerance, min_replies

__all__ = ["log_misreported", "log_replies", "report", "warn_of_majority"]


def warn_of_majority(
    phase: str, asked: int, connected: int, tolerance: Tolerance
) -> None:
    """Warn, before anything is sent, if no rule protects a round of this size."""
    f = tolerance.among(asked, connected)
    enough = tolerance.too_small(asked, connected)
    if asked < min_replies(f):
        log(
            WARNING,
            "configure_%s: %d nodes are asked; %d are needed against %d malicious "
            "ones. Set `min_%s_nodes` and `min_available_nodes` to that many.",
            *(phase, asked, min_replies(f), f, phase),
        )
    elif enough is not None:
        log(
            WARNING,
            "configure_%s: Samples of %d of %d nodes, %d of them malicious, are likely "
            "to hold a malicious majority in some round. Sample at least %d: set "
            "`min_%s_nodes` or `fraction_%s`.",
            *(phase, asked, connected, tolerance.of(connected), enough, phase, phase),
        )


def log_replies(round_: Round, found: InspectedReplies) -> None:
    """Log how many replies are accepted, and the reason for each other one."""
    accepted, rejected = len(found.accepted), len(found.rejected)
    log(
        INFO,
        "aggregate_%s: %d of %d replies accepted, %d rejected, %d missing",
        *(round_.phase, accepted, len(round_.asked), rejected, len(found.missing)),
    )
    for node, rejection in found.rejected:
        log(WARNING, "\t> Rejected the reply of node %d: %s", node, rejection)
    for node, reason in found.missing:
        log(INFO, "\t> Nothing from node %d: %s", node, reason)
    if found.ignored:
        log(WARNING, "\t> Ignored %d replies to no message", found.ignored)
    proven, faulty = round_.evidence(found)
    if proven + faulty > round_.f:
        log(WARNING, "\t> More are rejected than `num_malicious_nodes` allows for")
    needed = min_replies(round_.f, proven, faulty)
    if accepted < needed:
        log(
            WARNING,
            "aggregate_%s: Skipped. %d accepted replies are not the %d that outvote %d "
            "malicious nodes.",
            *(round_.phase, accepted, needed, needed // 2),
        )


def log_misreported(misreported: Iterable[tuple[int, Rejection]]) -> None:
    """Log the nodes of which a metric does not count."""
    for node, reason in misreported:
        log(
            WARNING, "\t> Misreporting node %d: of its metrics, %s", node, reason.detail
        )


def report(
    round_: Round,
    found: InspectedReplies,
    misreported: Iterable[tuple[int, Rejection]] = (),
    metrics: MetricRecord | None = None,
) -> MetricRecord:
    """Return the metrics of a round with the counts of its replies."""
    return MetricRecord(
        {
            **(metrics or {}),
            "replies-accepted": len(found.accepted),
            "replies-rejected": len(found.rejected),
            "replies-missing": len(found.missing),
            "nodes-rejected": [node for node, _ in found.rejected],
            "nodes-misreporting": [node for node, _ in misreported],
            **({"nodes-excluded": round_.excluded} if round_.excluded else {}),
        }
    )
