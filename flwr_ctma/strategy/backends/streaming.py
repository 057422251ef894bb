"""Inner products of replies, computed while others are still missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.engine import threads
from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Float64, Moments, pivot_of
from flwr_ctma.messages.schema import Reply, ReplySchema

__all__ = ["StreamedRows", "Streaming"]

# Every visit reads all rows, however few of them are new: it costs as much for one new
# row as for this many.
_BATCH = 8
# Columns of a block. It does not depend on the number of rows, so that the product of
# two rows is the same sum whenever it is computed.
_WIDTH = 2**14


@dataclass(frozen=True)
class Streaming:
    """Use the time in which a round waits: the Gram matrix grows with every reply.

    When the last reply arrives, only its row of the matrix and the weighted sum remain
    to be computed. Each product is a sum of its own in a fixed order, so that the bits
    of the result do not depend on the order of arrival.
    """

    def open_round(self, schema: ReplySchema) -> "StreamedRows":
        """Return the rows of a round in which this model was sent."""
        return StreamedRows(schema)


class StreamedRows:
    """The replies of a round so far, and the inner products of their updates.

    Parameters
    ----------
    schema : ReplySchema
        The model that was sent.
    """

    def __init__(self, schema: ReplySchema) -> None:
        self._schema = schema
        self._replies: dict[str, Reply] = {}
        self._measured: list[str] = []  # keys of the rows of the matrix
        self._products = np.zeros((0, 0))

    def add(self, key: str, reply: Reply) -> None:
        """Take a reply, and compute products if enough replies are new.

        A reply that takes the place of another is measured anew.
        """
        if key in self._measured:
            kept = [i for i, one in enumerate(self._measured) if one != key]
            self._measured.remove(key)
            self._products = self._products[np.ix_(kept, kept)]
        self._replies[key] = reply
        if len(self._replies) >= len(self._measured) + _BATCH:
            self._measure()

    def place(self, rows: CpuStack, keys: Sequence[str] = ()) -> CpuStack:
        """Return the rows with their inner products, if these are precise enough."""
        streamed = len(keys) == rows.n  # a reference is a row that no client sent
        if keys and streamed and all(key in self._replies for key in keys):
            self._measure()
            order = [self._measured.index(key) for key in keys]
            products = self._products[np.ix_(order, order)]
            if np.isfinite(products).all() and pivot_of(products) is None:
                vars(rows)["moments"] = Moments(products)
        return rows

    def _measure(self) -> None:
        """Append rows to the matrix, for the replies that are new."""
        old = len(self._measured)
        self._measured += [key for key in self._replies if key not in self._measured]
        n = len(self._measured)
        if n == old:
            return
        replies = [self._replies[key] for key in self._measured]
        stack = self._schema.updates(replies, self._schema.measured).stack
        if not isinstance(stack, CpuStack):
            raise TypeError("Replies are stacked on the CPU")
        new_rows = products_from(stack.layers, old)
        self._products = np.pad(self._products, (0, n - old))
        self._products[old:] = new_rows
        self._products[:old, old:] = new_rows[:, :old].T


def products_from(layers: Sequence[Layer], first: int) -> Float64:
    """Return the inner products of the rows from the first on with all rows."""
    n = len(layers[0].rows)

    def visit(block: tuple[Layer, int, int]) -> Float64:
        layer, a, b = block
        rows = layer.load(a, b, np.empty((n, b - a), layer.dtype))
        found: Float64 = _dots(rows[first:, None], rows[None]).astype(np.float64)
        return found

    return sum(threads.run(visit, _blocks(layers)), np.zeros((n - first, n)))


def _blocks(layers: Sequence[Layer]) -> Iterator[tuple[Layer, int, int]]:
    for layer in layers:
        for a in range(0, layer.width, _WIDTH):
            yield layer, a, min(a + _WIDTH, layer.width)


def _dots(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the dot products of all pairs of rows, each as a sum of its own."""
    if hasattr(np, "vecdot"):
        found: NDArray[np.floating] = np.vecdot(x, y)
        return found
    return np.array([[np.dot(a[0], b) for b in y[0]] for a in x])  # NumPy 1.26
