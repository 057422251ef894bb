"""Distances to a point that the replies of the round cannot move."""

from collections.abc import Mapping, Sequence
from random import SystemRandom
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.engine import threads

__all__ = ["PreviousUpdate"]

_SIZE = 2**18
# A sample has about this many runs. Single coordinates, spread over the model, would
# read all of the memory of the replies, and take three times as long.
_RUNS = 2**8


class PreviousUpdate:
    """The aggregate of the round before, as a center for `Ledger`.

    Parameters
    ----------
    size : int (default: 2¹⁸)
        Coordinates that are kept, at most. Of a larger model every s-th run of
        neighbouring coordinates is kept, from an offset that is drawn anew for each
        round with the randomness of the system: clients cannot know it, and the bound
        of `Ledger` holds for any choice that is made before the round.

    Examples
    --------
    >>> center = PreviousUpdate()
    >>> center.distances([[np.array([1.0, 2.0])]], [np.zeros(2)]) is None
    True
    >>> center.keep([np.array([1.0, 1.0])])
    >>> replies = [[np.array([1.0, 2.0])], [np.array([4.0, 5.0])]]
    >>> center.distances(replies, [np.zeros(2)])
    array([1., 5.])
    """

    def __init__(self, size: int = _SIZE) -> None:
        self.size = size
        self._run = max(1, size // _RUNS)
        self._start, self._stride = 0, 1
        self._kept: list[NDArray[np.float64]] = []

    def keep(self, update: Sequence[NDArray[Any]]) -> None:
        """Keep the update that a round ended with.

        Parameters
        ----------
        update : sequence of one-dimensional arrays
            One for each tensor that counts in distances.
        """
        self._stride = -(-sum(part.size for part in update) // self.size) or 1
        self._start = SystemRandom().randrange(self._stride)
        self._kept = [self._sample(part) for part in update]

    def distances(
        self, rows: Sequence[Sequence[NDArray[Any]]], origin: Sequence[NDArray[Any]]
    ) -> NDArray[np.float64] | None:
        """Return ‖row − origin − kept update‖ of every client; None if none is kept.

        Parameters
        ----------
        rows : sequence of n sequences of one-dimensional arrays
            The tensors of each client's reply.
        origin : sequence of one-dimensional arrays
            The tensors of the model that was sent.

        Returns
        -------
        ndarray of shape (n,), or None
            None also if the model has another shape than before.
        """
        points = [self._sample(part, _precision(part)) for part in origin]
        if [p.shape for p in points] != [k.shape for k in self._kept]:
            return None
        for point, kept in zip(points, self._kept, strict=True):
            np.add(point, kept, out=point, casting="same_kind")

        def square(row: Sequence[NDArray[Any]]) -> float:
            total = 0.0
            for part, point in zip(row, points, strict=True):
                gap = self._sample(part, point.dtype)
                gap -= point
                total += float(gap @ gap)
            return total

        return np.sqrt(threads.run(square, rows))

    def _sample(
        self, part: NDArray[Any], dtype: "np.dtype[Any] | None" = None
    ) -> NDArray[Any]:
        """Return every s-th run of a tensor as a copy, in float64 if not told."""
        period = self._stride * self._run
        first = self._start * self._run
        whole = part.size // period * period
        runs = part[:whole].reshape(-1, period)[:, first : first + self._run]
        rest = part[whole:][first : first + self._run]
        sample = np.empty(runs.size + rest.size, dtype)
        sample[: runs.size].reshape(runs.shape)[:] = runs
        sample[runs.size :] = rest
        return sample

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"start": self._start, "stride": self._stride, "kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._start, self._stride = state["start"], state["stride"]
        self._kept = [*state["kept"]]


def _precision(part: NDArray[Any]) -> "np.dtype[Any]":
    """Return the dtype of differences: that of the replies, but not a half one."""
    return np.promote_types(part.dtype, np.float32)
