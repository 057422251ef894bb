"""Rows in this process, and their inner products while replies are still missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.kernels import cpu_primitives
from flwr_ctma.messages.schema import Reply, ReplySchema

__all__ = ["Local", "LocalRows"]

# Every visit reads all rows, however few of them are new: it costs as much for one new
# row as for this many. Later visits wait for this part of the rows, so that all visits
# together read the rows a bounded number of times.
_BATCH = 8


@dataclass(frozen=True)
class Local:
    """Hold the rows in this process, and use the time in which a round waits.

    For a rule that needs them, the matrix of inner products grows with the replies.
    When the last reply arrives, only its strip of the matrix and the weighted sum
    remain to be computed. The bits of a product depend on its two rows only, so those
    of the result depend neither on the order of arrival nor on what was early. Without
    Numba, which computes products like that, nothing is early.
    """

    def open_round(self, schema: ReplySchema, needs_products: bool) -> "LocalRows":
        """Return the rows of a round in which this model was sent."""
        return LocalRows(schema, needs_products)


class LocalRows:
    """The replies of a round so far, and the inner products of their updates.

    Parameters
    ----------
    schema : ReplySchema
        The model that was sent.
    needs_products : bool
        Whether the rule needs the inner products of all rows.
    """

    def __init__(self, schema: ReplySchema, needs_products: bool) -> None:
        self._schema = schema
        self._early = needs_products and cpu_primitives().independent_products
        self._replies: dict[str, Reply] = {}
        self._measured: list[str] = []  # keys of the rows of the matrix
        self._products = np.zeros((0, 0))

    def add(self, replies: Mapping[str, Reply], waiting: bool) -> None:
        """Take replies; compute products if the round waits and enough are new.

        A reply that takes the place of another is measured anew.
        """
        if not self._early:
            return
        kept = [i for i, key in enumerate(self._measured) if key not in replies]
        if len(kept) < len(self._measured):
            self._measured = [self._measured[i] for i in kept]
            self._products = self._products[np.ix_(kept, kept)]
        self._replies.update(replies)
        known = len(self._measured)
        enough = max(_BATCH, known // _BATCH)
        if waiting and len(self._replies) >= known + enough:
            self._measure()

    def place(self, rows: CpuStack, keys: Sequence[str] = ()) -> CpuStack:
        """Return the rows, with their inner products if the rule needs them."""
        streamed = len(keys) == rows.n  # a reference is a row that no client sent
        if self._early and streamed and all(key in self._replies for key in keys):
            self._measure()
            order = [self._measured.index(key) for key in keys]
            rows.use_products(self._products[np.ix_(order, order)])
        return rows

    def _measure(self) -> None:
        """Append rows to the matrix, for the replies that are new."""
        old = len(self._measured)
        self._measured += [key for key in self._replies if key not in self._measured]
        n = len(self._measured)
        replies = [self._replies[key] for key in self._measured]
        stack = self._schema.updates(replies, self._schema.measured).stack
        if n > old and isinstance(stack, CpuStack):
            strip = stack.products_with(range(old, n))
            self._products = np.pad(self._products, (0, n - old))
            self._products[old:] = strip
            self._products[:old, old:] = strip[:, :old].T
