"""Replies whose inner products are taken as they arrive, not when all are in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.stack import Moments, pivot_of
from flwr_ctma.messages.schema import Reply, ReplySchema
from flwr_ctma.strategy.round.replies import Read, read_one

__all__ = ["Streaming", "Strips"]

# A strip reads all rows, however narrow it is: for this many as fast as for one.
_TOGETHER = 8


@dataclass(frozen=True)
class Streaming:
    """Use the time in which a round waits: the Gram matrix grows with every reply.

    When the last reply comes, its strip of the matrix is missing, and the weighted sum.
    In return the last bits of the matrix, in float32, depend on the order of arrival.
    """

    def begin(self, sent: ReplySchema, read: Read) -> "Strips":
        """Begin a round."""
        return Strips(sent, read)


class Strips:
    """The replies of a round so far, and the inner products of their updates.

    Parameters
    ----------
    sent : Model
        What the replies answer.
    read : callable
        Inspects the content of a reply.
    """

    def __init__(self, sent: ReplySchema, read: Read) -> None:
        self._sent, self._read = sent, read
        self._replies: list[Reply] = []
        self._products = np.zeros((0, 0))

    def arrive(self, messages: Sequence[Message]) -> None:
        """Take replies, and their strip when they are enough for one."""
        found = [read_one(message, self._read) for message in messages]
        self._replies += [reply for reply in found if isinstance(reply, Reply)]
        if len(self._replies) >= len(self._products) + _TOGETHER:
            self._fold()

    def place(self, rows: CpuStack) -> CpuStack:
        """Give a stack the inner products of its rows, if all of them have arrived.

        Rows are known by where they are in memory, which nothing else can be as long as
        they are held here: a reply that somebody has put in the place of one is new.
        """
        known = {where: i for i, where in enumerate(_places(self._fold()))}
        order = [known.get(where, -1) for where in _places(rows)]
        if -1 not in order:
            products = self._products[np.ix_(order, order)]
            if np.isfinite(products).all() and pivot_of(products) is None:
                vars(rows)["moments"] = Moments(products)
        return rows

    def _fold(self) -> CpuStack | None:
        if not self._replies:
            return None
        stack = self._sent.updates(self._replies, self._sent.measured).stack
        if not isinstance(stack, CpuStack):
            return None
        old, n = len(self._products), stack.n
        if old == 0:
            self._products = stack.products(None, None)
        elif old < n:
            strip = stack.products_with(range(old, n))
            self._products = np.pad(self._products, (0, n - old))
            self._products[old:] = strip
            self._products[:old, old:] = strip[:, :old].T
        return stack


def _places(stack: CpuStack | None) -> list[tuple[int, ...]]:
    if stack is None:
        return []
    return [
        tuple(layer.rows[i].ctypes.data for layer in stack.layers)
        for i in range(stack.n)
    ]
