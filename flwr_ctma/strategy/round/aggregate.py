"""The robust aggregate of accepted replies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from flwr_ctma.aggregators import Aggregator, Budget, CwTM
from flwr_ctma.engine.stack import Stack
from flwr_ctma.engine.threads import one_blas_thread
from flwr_ctma.messages.schema import Reply, ReplySchema
from flwr_ctma.strategy.round.memory import NodeMemory, solve_remembered

__all__ = ["RobustAggregate", "aggregate_replies"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RobustAggregate:
    """The aggregate of the replies of a round.

    Attributes
    ----------
    arrays : ArrayRecord
        The model that was sent plus the aggregated update.
    update : list of ndarray
        The update, over the measured layers.
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
        """Indices of the clients with influence 0."""
        if self.influence is None:
            return []
        return [int(i) for i in np.flatnonzero(self.influence == 0)]


@one_blas_thread()
def aggregate_replies(
    rule: Aggregator,
    sent: ReplySchema,
    replies: Sequence[Reply],
    budget: Budget,
    reference: Sequence[NDArray[Any]] | None = None,
    place: Callable[[Any], Stack] | None = None,
    memory: NodeMemory | None = None,
    nodes: Sequence[int] = (),
) -> RobustAggregate:
    """Aggregate replies, and add the result to the model that was sent.

    Buffers are aggregated on their own, by a trimmed mean: a client whose parameters
    are near the others' may still lie in the buffers.

    Parameters
    ----------
    rule : Aggregator
        The rule for the parameters.
    sent : ReplySchema
        The model that was sent.
    replies : sequence of n Reply
    budget : Budget
        How many of them, or which share of their weight, may be Byzantine.
    reference : list of ndarray, optional
        An earlier update, for a rule that starts from one.
    place : callable, optional
        It maps a `CpuStack` to the `Stack` of the backend.
    memory : NodeMemory, optional
        The rule then weighs the remembered rows in place of the present ones.
    nodes : sequence of n node ids
        The senders; used with a memory alone.

    Raises
    ------
    ValueError
        If the replies are too few for the rule.
    """
    rows = sent.updates(replies, sent.measured, reference)
    if place:
        rows = replace(rows, stack=place(rows.stack))
    point = (
        rule.solve(rows, budget)
        if memory is None
        else solve_remembered(rule, memory, nodes, rows, budget)
    )
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
    return RobustAggregate(sent.write(update), vector, distances, influence)
