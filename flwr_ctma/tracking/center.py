"""Distances to a point that the replies of the round cannot move."""

from collections.abc import Mapping, Sequence
from random import SystemRandom
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PreviousUpdate"]

_SIZE = 2**18


class PreviousUpdate:
    """The aggregate of the round before, as a center for `Ledger`.

    Parameters
    ----------
    size : int (default: 2¹⁸)
        Coordinates that are kept, at most. Of a larger model every s-th is kept, from
        an offset that is drawn anew for each round with the randomness of the system:
        clients cannot know it, and the bound of `Ledger` holds for any choice that is
        made before the round.

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
        self._kept = [part[self._sample].astype(np.float64) for part in update]

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
        points = [part[self._sample].astype(np.float64) for part in origin]
        if [p.shape for p in points] != [k.shape for k in self._kept]:
            return None
        squares = np.zeros(len(rows))
        for j, (point, kept) in enumerate(zip(points, self._kept, strict=True)):
            point += kept
            gap = np.empty_like(point)
            for i, row in enumerate(rows):
                np.subtract(row[j][self._sample], point, out=gap)
                squares[i] += np.square(gap, out=gap).sum()
        return np.sqrt(squares)

    @property
    def _sample(self) -> slice:
        return slice(self._start, None, self._stride)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"start": self._start, "stride": self._stride, "kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._start, self._stride = state["start"], state["stride"]
        self._kept = [*state["kept"]]
