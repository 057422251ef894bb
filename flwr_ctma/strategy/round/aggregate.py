"""From good replies to the next model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from flwr_ctma.aggregators import Aggregator, Budget, CwTM
from flwr_ctma.engine.stack import Stack
from flwr_ctma.messages.schema import Reply, ReplySchema

__all__ = ["Step", "aggregate_replies"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Step:
    """What a rule made of the replies of a round.

    Attributes
    ----------
    arrays : ArrayRecord
        The model that was sent plus the aggregated update.
    update : list of ndarray
        The update, over the measured tensors.
    distances : ndarray of shape (n,)
        ‖update of the client − update‖.
    influence : ndarray of shape (n,), or None
        Weight of each client in the update; None where it differs by coordinate.
    """

    arrays: ArrayRecord
    update: list[NDArray[Any]]
    distances: Float64
    influence: Float64 | None

    @property
    def trimmed(self) -> list[int]:
        """Index of every client that does not count."""
        if self.influence is None:
            return []
        return [int(i) for i in np.flatnonzero(self.influence == 0)]


def aggregate_replies(
    rule: Aggregator,
    sent: ReplySchema,
    replies: Sequence[Reply],
    budget: Budget,
    reference: Sequence[NDArray[Any]] | None = None,
    place: Callable[[Any], Stack] | None = None,
) -> Step:
    """Aggregate replies, and add the result to what was sent.

    Tensors that are not measured are aggregated on their own, by a trimmed mean: who
    is near the others in what is measured may still lie in what is not.

    Parameters
    ----------
    rule : Aggregator
        For the tensors that are measured.
    sent : Model
        What the replies answer.
    replies : sequence of n Reply
    budget : Budget
        How much of them may be Byzantine.
    reference : list of ndarray, optional
        An earlier update, for a rule that starts from one.
    place : callable, optional
        Holds the measured rows elsewhere: maps a `CpuStack` to a `Stack`.

    Raises
    ------
    ValueError
        If the replies are too few for the rule.
    """
    rows = sent.updates(replies, sent.measured, reference)
    if place:
        rows = replace(rows, stack=place(rows.stack))
    point = rule.solve(rows, budget)
    # Distances first: a coordinate-wise rule then finds its vector in the same visit.
    distances = np.sqrt(point.squared_distances(rows))
    vector = point.vector(rows.stack)
    update = dict(zip(sent.measured, vector, strict=True))
    if sent.buffers:
        rows_apart = sent.updates(replies, sent.buffers)
        found = CwTM().solve(rows_apart, budget).vector(rows_apart.stack)
        update.update(zip(sent.buffers, found, strict=True))
    weights = point.weights()
    influence = None if weights is None else weights[: rows.n]
    return Step(sent.write(update), vector, distances, influence)
