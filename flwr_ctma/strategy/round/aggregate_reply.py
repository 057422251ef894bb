"""The one reply that a strategy inside gets to see."""

from collections import Counter
from logging import WARNING

from flwr.app import ArrayRecord, Message, RecordDict

from flwr_ctma.compat import log
from flwr_ctma.strategy.round.claims import trimmed_mean
from flwr_ctma.strategy.round.replies import Round, SortedReplies

__all__ = ["build_aggregate_reply"]


def build_aggregate_reply(
    round_: Round,
    outcome: SortedReplies,
    f: int,
    weight_key: str,
    records: dict[str, ArrayRecord] | None = None,
) -> Message:
    """Write the reply: the arrays that were aggregated, and trimmed means of metrics.

    Parameters
    ----------
    round_ : Round
    outcome : Outcome
        Its accepted replies; whose metrics do not count is entered there.
    f : int
        How many of them may lie.
    weight_key : str
        Metric that strategies weigh replies by, and must find.
    records : dict of ArrayRecord, optional
        By name.
    """
    replies = outcome.replies
    metrics, faults = trimmed_mean([reply.metrics for reply in replies], f)
    outcome.misreported = [(outcome.nodes[i], why) for i, why in faults.items()]
    for node, why in outcome.misreported:
        log(WARNING, "\t> Misreporting node %d: of its metrics, %s", node, why.detail)
    weight = metrics.get(weight_key)
    if not isinstance(weight, float) or weight <= 0:
        metrics[weight_key] = 1.0
    name, _ = Counter(reply.name for reply in replies).most_common(1)[0]
    content = RecordDict({**(records or {}), name: metrics})
    return Message(content, reply_to=round_.asked[0])
