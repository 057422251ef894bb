"""Divide and conquer as published: the rows that pass in random coordinates."""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.spectral import top_direction
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["SampledDnC"]


@dataclass(frozen=True)
class SampledDnC(Aggregator, name="sampleddnc"):
    """Divide and conquer in random coordinates: the mean of rows that pass each time.

    In each iteration, `subset` coordinates are drawn, and with the mean μ and the top
    right singular vector v of the centred rows x_i there, the k = ⌈factor·f⌉ rows with
    the largest ⟨x_i − μ, v⟩² fail. The result is the mean of the rows that pass in all
    iterations, or if there are none, in most of them; the paper leaves that open.

    The k rows fail at once, along one direction. With two liars there is no κ: one at
    (0, B²) turns v to the second axis, and one at (B, t), for a t near the honest
    values, passes in place of an honest row, however large B is. `dnc` finds μ and v
    anew for each row that it drops, in all coordinates. Rows are read one by one,
    whole; with the backend "ray" they come back to this process. Rows have no weights.

    Parameters
    ----------
    subset : int (default: 10000)
        Number of coordinates, b in the paper; all of them if there are fewer.
    iterations : int (default: 1)
        Number of subsets.
    factor : float (default: 1.0)
        Rows that fail for each Byzantine row, c in the paper.
    seed : int (default: 0)
        Of the subsets, which are the same at every call: a liar who knows the seed can
        lie in the other coordinates.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or all n rows would fail.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning
    Attacks and Defenses for Federated Learning", NDSS 2021, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> SampledDnC()(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    array([2.])
    """

    subset: int = 10_000
    iterations: int = 1
    factor: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("subset", "iterations"):
            if getattr(self, name) < 1:
                raise parameter_error(name, "at least 1", getattr(self, name))
        if not 0 < self.factor < np.inf:
            raise parameter_error("factor", "above 0 and finite", self.factor)
        if self.seed < 0:
            raise parameter_error("seed", "at least 0", self.seed)

    def min_rows(self, f: int) -> int:
        """Return the smallest n with a majority of honest rows, and one that passes."""
        return max(2 * f, self._failing(f)) + 1

    def _failing(self, f: int) -> int:
        return ceil(round(self.factor * f, 9))  # 2.2 · 25 is 55

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        n, passing = budget.n, budget.n - self._failing(budget.count)
        passed = np.zeros(n)
        for sample in self._samples(rows):
            gram = sample.centred_gram()
            along = top_direction(gram, np.full(n, 1 / n), np.zeros(n))[1]
            passed[np.argsort(np.abs(along), kind="stable")[:passing]] += 1
        kept = passed == passed.max()
        return Combination(rows.to_stack_coefficients(kept / kept.sum()))

    def _samples(self, rows: Updates) -> list[Updates]:
        """Return the rows in the coordinates of each subset, layer by layer."""
        stack = rows.stack  # its rows are read once each, and mixed in the subsets
        widths = [len(part) for part in stack.combine(np.zeros(stack.n))]
        rng = np.random.default_rng(self.seed)
        subsets = [_draw(rng, self.subset, widths) for _ in range(self.iterations)]
        vectors: list[list[Any]] = [[] for _ in subsets]
        for unit in np.eye(stack.n):
            row = stack.combine(unit)
            for subset, taken in zip(subsets, vectors, strict=True):
                taken.append([part[at] for part, at in zip(row, subset, strict=True)])
        samples = (stack.from_vectors(taken) for taken in vectors)
        return [Updates(sample, rows.mixing) for sample in samples]


def _draw(
    rng: np.random.Generator, size: int, widths: list[int]
) -> list[NDArray[np.intp]]:
    """Draw coordinates of all layers together; return those of each layer."""
    ends = np.cumsum(widths)
    drawn = np.sort(rng.choice(ends[-1], min(size, int(ends[-1])), replace=False))
    pieces = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    return [piece - start for piece, start in zip(pieces, ends - widths, strict=True)]
