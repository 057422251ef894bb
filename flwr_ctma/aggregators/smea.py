"""Smallest maximum eigenvalue averaging, by lower bounds over all subsets."""

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
# Bounds computed in all: enough for 24 494 subsets that no bound tells apart.
_MOST = 300_000_000


@dataclass(frozen=True)
class SMEA(Aggregator, name="smea"):
    """Smallest maximum eigenvalue averaging: the n − f rows of least covariance.

    The mean of the subset whose scatter matrix has the smallest largest eigenvalue. The
    scatter of a subset along a direction bounds its eigenvalue from below, and one
    matrix product gives that bound for all subsets. So eigenvalues are computed only of
    the subsets of least bound, and their top directions then bound the other subsets:
    some hundred eigenvalues for the 24 310 subsets of 8 of 17. Everything follows from
    the Gram matrix.

    After 3e8 bounds, some 5 s of a CPU, the best subset so far is taken, so no rows can
    hold a round up. If C(n, f) is at most 24 494, the search always ends before, and is
    exact.
    Rows have no weights, because subsets are of rows.

    Parameters
    ----------
    limit : int (default: 200000)
        Largest number C(n, f) of subsets. For more, the rule is undefined.

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

        None if C(n, f) is above 24 494, where the search may be cut.

        Of the rows in S, n − 2f or more are kept. Along any direction, their mean is at
        most √(f/(n − 2f)) standard deviations of S from the mean of S, and as many of
        those of the kept rows, which are no larger, from the mean of the kept rows.
        """
        return 4 * f / (n - 2 * f) if comb(n, f) ** 2 <= 2 * _MOST else None

    def _check(self, budget: Budget, weighted: bool) -> None:
        n, f = budget.n, budget.count
        if comb(n, f) > self.limit:
            raise parameter_error(
                "f",
                f"such that C(n, f) is at most {self.limit} for smea",
                f"{f} with {comb(n, f)} subsets of n = {n}",
                "Raise `limit`, or use caf, which filters by the same eigenvalue.",
            )

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        n, f = budget.n, budget.count
        chosen = _least_scattered(rows.centred_gram(), _subsets(n, f))
        return Combination(rows.to_stack_coefficients(chosen / (n - f)))


def _subsets(n: int, f: int) -> Subsets:
    """Return all sets of n − f of n rows, (C(n, f), n)."""
    count = comb(n, f)
    left_out = chain.from_iterable(combinations(range(n), f))
    kept = np.ones((count, n), dtype=bool)
    np.put_along_axis(kept, np.fromiter(left_out, int).reshape(count, f), False, axis=1)
    return kept


def _least_scattered(gram: Float64, subsets: Subsets) -> Subsets:
    """Return the subset whose scatter has the smallest largest eigenvalue."""
    bound = np.zeros(len(subsets))
    best, chosen, computed = np.inf, 0, 0
    candidates = np.array([0])
    while candidates.size and computed < _MOST:
        top, along = _top_directions(gram, subsets[candidates])
        if top.min() < best:
            best, chosen = top.min(), int(candidates[np.argmin(top)])
        bound[candidates] = np.inf
        left = np.flatnonzero(bound < best)
        computed += candidates.size * left.size
        for part in np.array_split(left, len(left) // _CHUNK + 1):
            bound[part] = np.maximum(bound[part], _scatter(subsets[part], along))
        left = left[bound[left] < best]
        candidates = left[np.argsort(bound[left], kind="stable")[:_ROUND]]
    least: Subsets = subsets[chosen]
    return least


def _top_directions(gram: Float64, subsets: Subsets) -> tuple[Float64, Float64]:
    """Return largest eigenvalues, and all rows along their directions, (n, subsets)."""
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
    """Return the scatter of each subset along its direction of largest scatter."""
    kept = subsets.astype(np.float64)
    sums, squares = kept @ along, kept @ along**2
    squares -= sums * (sums / kept.sum(axis=1, keepdims=True))
    largest: Float64 = squares.max(axis=1)
    return largest
