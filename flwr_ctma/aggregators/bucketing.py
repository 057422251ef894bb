"""Bucketing: averages of random groups of rows."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flwr_ctma.aggregators.base import Budget, MetaAggregator, Point
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Bucketing"]


@dataclass(frozen=True)
class Bucketing(MetaAggregator, name="bucketing"):
    """Bucketing: rows in random order, averaged s by s, then the base rule.

    A Byzantine row spoils one bucket, so the ⌈n/s⌉ buckets must be as many as the base
    rule needs for f Byzantine rows: more than 2f. Rows have no weights, because rows
    are drawn.

    Parameters
    ----------
    base : Aggregator
    size : int, optional
        s. If None, the largest that leaves the base rule enough buckets.
    seed : int (default: 0)
        Of the random order, which is the same at every call: change it each round.

    Raises
    ------
    ValueError
        If size or seed is out of range, or leaves the base rule too few buckets.

    References
    ----------
    Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", ICLR 2022, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from flwr_ctma.aggregators import CwMed
    >>> Bucketing(CwMed(), size=1)(np.array([[1.0], [2.0], [99.0]]), f=1)
    array([2.])
    """

    weighted: ClassVar[bool] = False

    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size < 1:
            raise parameter_error("size", "at least 1", self.size)
        if self.seed < 0:
            raise parameter_error("seed", "at least 0", self.seed)

    def kappa(self, n: int, f: int) -> float | None:
        """(κ + 1)(n − f)/(s (m − f)), κ of the base among m buckets of s rows or more.

        m − f buckets hold none but rows of S, and those are at most (n − f)/s times as
        far from the mean of S, in sum of squares, as its rows are on average (Jensen).
        """
        size = self._size_of(n, f)
        buckets = -(-n // size)
        base = self.base.kappa(buckets, f) if buckets > 2 * f else None
        if base is None:
            return None
        least = n - (buckets - 1) * size
        return (base + 1) * (n - f) / (least * (buckets - f))

    def _size_of(self, n: int, f: int) -> int:
        # ⌈n/s⌉ ≥ m if and only if n > (m − 1) s.
        others = self.base.min_rows(f) - 1
        return self.size or (max(1, (n - 1) // others) if others else n)

    def min_rows(self, f: int) -> int:
        """Return the smallest n with enough buckets for the base rule."""
        return (self.base.min_rows(f) - 1) * (self.size or 1) + 1

    def _check(self, budget: Budget, weighted: bool) -> None:
        n, f = budget.n, budget.count
        least = self.base.min_rows(f)
        buckets = -(-n // self._size_of(n, f))
        if self.size is not None and buckets < least:
            raise parameter_error(
                "size",
                f"such that ⌈n/size⌉ is at least {least} for n = {n} and f = {f}",
                self.size,
                "Leave it out, sample more clients, or use nnm(cwmed).",
            )
        self.base.check(buckets, f)

    def _point(self, rows: Updates, budget: Budget) -> Point:
        n, f = budget.n, budget.count
        size = self._size_of(n, f)
        buckets = -(-n // size)
        order = np.random.default_rng(self.seed).permutation(n)
        mixing = np.zeros((buckets, n))
        mixing[np.arange(n) // size, order] = 1.0
        mixing /= mixing.sum(axis=1, keepdims=True)
        return self.base.solve(rows.mix(mixing), budget.of(buckets))
