"""Smallest maximum eigenvalue averaging, by cutting planes over all subsets."""

from dataclasses import dataclass
from itertools import chain, combinations
from math import comb
from typing import Any

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["SMEA"]

Subsets = np.ndarray[Any, np.dtype[np.bool_]]

# Measured: more eigenvalues a round, or longer blocks of subsets, take longer in all.
_ROUND = 16
_CHUNK = 1024


@dataclass(frozen=True)
class SMEA(Aggregator):
    """Smallest maximum eigenvalue averaging: the n − f rows of least covariance.

    The mean of the subset whose scatter matrix has the smallest largest eigenvalue,
    found exactly. The scatter of a subset along any one direction bounds its eigenvalue
    from below, and for all subsets at once that is a matrix product. So eigenvalues are
    computed only of the subsets of least bound, and their top directions then bound the
    rest: some hundred eigenvalues for the 24 310 subsets of 8 of 17. All of it follows
    from the Gram matrix.

    Parameters
    ----------
    limit : int (default: 200000)
        Largest number C(n, f) of subsets, beyond which it raises a ValueError.

    Raises
    ------
    ValueError
        If limit is below 1, or too low for n and f.

    References
    ----------
    Allouah et al., "On the Privacy-Robustness-Utility Trilemma in Distributed
    Learning", ICML 2023, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> SMEA()(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    array([2.])
    """

    limit: int = 200_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit < 1:
            raise parameter_error("limit", "at least 1", self.limit)

    def kappa(self, n: int, f: int) -> float | None:
        """4f/(n − 2f), even with the largest eigenvalue of S for its variance.

        The rows in S that are kept are n − 2f or more: along any direction their mean
        is off that of S by √(f/(n − 2f)) standard deviations of S at most, and off that
        of the kept rows by as many of theirs, which are no larger.
        """
        return 4 * f / (n - 2 * f)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        n, f = budget.n, budget.count
        if comb(n, f) > self.limit:
            raise parameter_error(
                "f",
                f"such that smea has at most {self.limit} subsets of n − f rows",
                f"{f} with {comb(n, f)} subsets of n = {n}",
                "Raise `limit`, or use caf, which filters by the same eigenvalue.",
            )
        chosen = _least_scattered(rows.centred_gram(), _subsets(n, f))
        return Combination(rows.to_stack_coefficients(chosen / (n - f)))


def _subsets(n: int, f: int) -> Subsets:
    """All sets of n − f of n rows, (C(n, f), n)."""
    count = comb(n, f)
    left_out = chain.from_iterable(combinations(range(n), f))
    kept = np.ones((count, n), dtype=bool)
    np.put_along_axis(kept, np.fromiter(left_out, int).reshape(count, f), False, axis=1)
    return kept


def _least_scattered(gram: Float64, subsets: Subsets) -> Subsets:
    """Subset whose scatter has the smallest largest eigenvalue."""
    bound = np.zeros(len(subsets))
    best, chosen = np.inf, 0
    candidates = np.array([0])
    while candidates.size:
        top, along = _top_directions(gram, subsets[candidates])
        if top.min() < best:
            best, chosen = top.min(), int(candidates[np.argmin(top)])
        bound[candidates] = np.inf
        left = np.flatnonzero(bound < best)
        for part in np.array_split(left, len(left) // _CHUNK + 1):
            bound[part] = np.maximum(bound[part], _scatter(subsets[part], along))
        left = left[bound[left] < best]
        candidates = left[np.argsort(bound[left], kind="stable")[:_ROUND]]
    least: Subsets = subsets[chosen]
    return least


def _top_directions(gram: Float64, subsets: Subsets) -> tuple[Float64, Float64]:
    """Largest eigenvalues, and all rows along the direction of each, (n, subsets)."""
    kept = np.nonzero(subsets)[1].reshape(len(subsets), -1)
    to_mean = np.eye(kept.shape[1]) - 1 / kept.shape[1]
    grams = gram[kept[:, :, None], kept[:, None, :]]
    values, vectors = np.linalg.eigh(to_mean @ grams @ to_mean)
    direction = np.zeros(subsets.shape)
    np.put_along_axis(direction, kept, (to_mean @ vectors[:, :, -1:])[:, :, 0], axis=1)
    along = gram @ direction.T
    lengths = np.sqrt(np.maximum(np.sum(direction.T * along, axis=0), 0))
    return values[:, -1], along / np.where(lengths > 0, lengths, np.inf)


def _scatter(subsets: Subsets, along: Float64) -> Float64:
    """Scatter of each subset along the direction in which it is largest."""
    kept = subsets.astype(np.float64)
    means = kept @ along / kept.sum(axis=1, keepdims=True)
    largest: Float64 = (kept @ along**2 - (kept @ along) * means).max(axis=1)
    return largest
