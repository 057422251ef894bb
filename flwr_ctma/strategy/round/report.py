"""What a user is told of a round: in the log, and in its metrics."""

from collections.abc import Iterable
from logging import INFO, WARNING

from flwr.app import Message, MetricRecord

from flwr_ctma.compat import log
from flwr_ctma.strategy.round.replies import Round, SortedReplies
from flwr_ctma.strategy.round.tolerance import Tolerance, min_replies

__all__ = ["bytes_of", "evidence", "log_outcome", "report", "warn_of_majority"]


def warn_of_majority(
    phase: str, asked: int, connected: int, tolerance: Tolerance
) -> None:
    """Warn, before anything is sent, where no rule protects a round of this size."""
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


def log_outcome(phase: str, round_: Round, outcome: SortedReplies) -> None:
    """Log how many replies count, and of every other one why it does not."""
    good, rejected = len(outcome.accepted), len(outcome.rejected)
    log(
        INFO,
        "aggregate_%s: %d of %d replies accepted, %d rejected, %d missing",
        *(phase, good, len(round_.asked), rejected, len(outcome.missing)),
    )
    for node, why in outcome.rejected:
        log(WARNING, "\t> Rejected the reply of node %d: %s", node, why)
    for node, why_missing in outcome.missing:
        log(INFO, "\t> Nothing from node %d: %s", node, why_missing)
    if outcome.ignored:
        log(WARNING, "\t> Ignored %d replies that nobody asked for", outcome.ignored)
    proven, faulty = evidence(round_, outcome)
    if proven + faulty > round_.f:
        log(WARNING, "\t> More are rejected than `num_malicious_nodes` allows for")
    needed = min_replies(round_.f, proven, faulty)
    if good < needed:
        log(
            WARNING,
            "aggregate_%s: Skipped. %d good replies are not the %d that outvote %d "
            "malicious nodes.",
            *(phase, good, needed, needed // 2),
        )


def evidence(round_: Round, outcome: SortedReplies) -> tuple[int, int]:
    """Count the proofs and the faults of a round; an excluded node is a proof."""
    proven = sum(why.proof for _, why in outcome.rejected)
    faulty = sum(why.fault for _, why in outcome.rejected)
    return proven + len(round_.excluded), faulty


def report(
    round_: Round, outcome: SortedReplies, metrics: MetricRecord | None = None
) -> MetricRecord:
    """Add what became of the replies to a round's metrics."""
    return MetricRecord(
        {
            **(metrics or {}),
            "replies-accepted": len(outcome.accepted),
            "replies-rejected": len(outcome.rejected),
            "replies-missing": len(outcome.missing),
            "nodes-rejected": [node for node, _ in outcome.rejected],
            "nodes-misreporting": [node for node, _ in outcome.misreported],
            **({"nodes-excluded": round_.excluded} if round_.excluded else {}),
        }
    )


def bytes_of(messages: Iterable[Message]) -> int:
    """Sum up the sizes of all arrays, whatever they hold."""
    return sum(
        len(array.data)
        for message in messages
        if message.has_content()
        for record in message.content.array_records.values()
        for array in record.values()
        if isinstance(array.data, bytes | memoryview)
    )
