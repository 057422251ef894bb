"""The replies that the strategy inside sees: robust aggregates in place of lies.

Flower's strategies average, so they see one reply with the robust arrays and metrics.
A class of one's own may count replies, read records of its own or look at errors: it
sees one reply for each accepted one, all with the same robust arrays.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from flwr_ctma.messages.arrays import numbers
from flwr_ctma.messages.schema import Rejection
from flwr_ctma.strategy.round.metrics import clip_to_honest_range, trimmed_mean
from flwr_ctma.strategy.round.replies import InspectedReplies, Round
from flwr_ctma.strategy.wrappers.run import inside

__all__ = ["InnerReplies", "only_averages", "overrides", "without_rounding"]

_KNOWN = ("flwr", "flwr_ctma")


@dataclass(frozen=True, eq=False)
class InnerReplies:
    """The replies of a round in the form in which the strategy inside sees them.

    Parameters
    ----------
    round_ : Round
    found : InspectedReplies
        The replies of the round; at least one is accepted.
    f : int
        How many of the accepted ones may be lies.
    weight_key : str
        Metric that strategies weight replies by, which every reply must have.
    arrays : dict of ArrayRecord
        The robust arrays by name of the record; none in an evaluation.
    """

    round_: Round
    found: InspectedReplies
    f: int
    weight_key: str
    arrays: dict[str, ArrayRecord]

    @cached_property
    def _averages(self) -> tuple[MetricRecord, dict[int, Rejection]]:
        return trimmed_mean([reply.metrics for reply in self.found.replies], self.f)

    @property
    def metrics(self) -> MetricRecord:
        """Trimmed means of the metrics; the weight is 1 where clients agree on none."""
        return self._with_weight(self._averages[0])

    @property
    def misreported(self) -> list[tuple[int, Rejection]]:
        """Nodes of which a metric does not count, with the reason."""
        nodes = self.found.nodes
        return [(nodes[i], reason) for i, reason in self._averages[1].items()]

    def one(self, arrays: bool = True) -> list[Message]:
        """Return one reply with the robust arrays, or empty ones, and metrics."""
        records = self.arrays if arrays else {key: ArrayRecord() for key in self.arrays}
        content = RecordDict({**records, self._name: self.metrics})
        return [Message(content, reply_to=self.round_.asked[0])]

    def each(self) -> list[Message]:
        """Return a reply for each accepted one, and the errors.

        It holds the robust arrays, the client's metrics clipped to the range of honest
        values, and the other records as the client sent them.
        """
        asked = {m.metadata.message_id: m for m in self.round_.asked}
        contents = zip(self.found.accepted, self.contents(), strict=True)
        by_key = {one.key: content for one, content in contents}
        replies = [
            Message(by_key[key], reply_to=message)
            for key, message in asked.items()
            if key in by_key
        ]
        return replies + self.found.errors

    def contents(self) -> list[RecordDict]:
        """Return the content of each reply; see `each`."""
        records = [reply.metrics for reply in self.found.replies]
        metrics = clip_to_honest_range(records, self._averages[0], self.f)
        taken = {*self.arrays, self._name}
        return [
            RecordDict(
                {
                    # A record of its own: Flower's FedMedian, say, empties it.
                    **{k: ArrayRecord({**record}) for k, record in self.arrays.items()},
                    self._name: self._with_weight(said),
                    **{
                        name: record
                        for name, record in one.message.content.items()
                        if name not in taken
                        and not isinstance(record, ArrayRecord | MetricRecord)
                    },
                }
            )
            for one, said in zip(self.found.accepted, metrics, strict=True)
        ]

    @contextmanager
    def given_to_metrics_function(
        self, strategy: Strategy, name: str
    ) -> Iterator[None]:
        """Let a metrics function of one's own see each reply, not the robust one.

        Parameters
        ----------
        strategy : Strategy
            The strategy inside, one of Flower's.
        name : str
            The attribute that holds the function.
        """
        owner = next((s for s in inside(strategy) if name in vars(s)), None)
        function = getattr(owner, name, None)
        if owner is None or not callable(function) or _is_known(function):
            yield
            return

        def see_each(contents: Sequence[RecordDict], weight_key: str) -> Any:
            return function(self.contents(), weight_key)

        setattr(owner, name, see_each)
        try:
            yield
        finally:
            setattr(owner, name, function)

    @property
    def _name(self) -> str:
        """The most common name of the clients' metrics."""
        return Counter(reply.name for reply in self.found.replies).most_common(1)[0][0]

    def _with_weight(self, metrics: MetricRecord) -> MetricRecord:
        weight = metrics.get(self.weight_key)
        if isinstance(weight, float) and weight > 0:
            return MetricRecord({**metrics})
        return MetricRecord({**metrics, self.weight_key: 1.0})


def overrides(strategy: Strategy, method: str) -> bool:
    """Return whether a method of a strategy is of one's own: its class's, or its."""
    return any(not _is_known(getattr(s, method)) for s in inside(strategy))


def only_averages(strategy: Strategy) -> bool:
    """Return whether a strategy of Flower's returns the average of the replies.

    The average of one reply is that reply, so that it need not be computed.
    """
    kind = type(strategy)
    own = overrides(strategy, "aggregate_train") or not _is_known(kind)
    return not own and kind.aggregate_train is FedAvg.aggregate_train


def without_rounding(robust: ArrayRecord, averaged: ArrayRecord, n: int) -> ArrayRecord:
    """Return the robust arrays if an average of n copies differs by rounding alone."""
    if robust.keys() != averaged.keys():
        return averaged
    for key in robust:
        x, y = numbers(robust[key]), numbers(averaged[key])
        if (
            x.shape != y.shape
            or x.dtype.kind not in "fiub"
            or y.dtype.kind not in "fiub"
        ):
            return averaged
        precision = x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
        bound = 2 * n * float(np.finfo(precision).eps)
        x, y = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(invalid="ignore"):  # constants may be infinite
            near = (x == y) | (np.abs(x - y) <= bound * np.abs(x))
        if not near.all():
            return averaged
    return robust


def _is_known(function: Any) -> bool:
    module = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] in _KNOWN
