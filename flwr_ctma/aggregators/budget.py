"""Budgets: how many rows, or how much of their weight, may be Byzantine."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ctma.engine.stack import Float64
from flwr_ctma.errors import parameter_error

__all__ = ["Budget"]

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Budget:
    """How many rows, or how much of their weight, may be Byzantine.

    Parameters
    ----------
    n : int
        Number of rows.
    f : int or float
        A count of rows, or a share in [0, 0.5) of the rows or, if they have weights, of
        their weight.
    weights : ndarray of shape (n,), optional
        Non-negative; uniform if None.

    Raises
    ------
    ValueError
        If f is neither a count below n/2 nor a share, or weights are not n numbers.
    """

    n: int
    f: int | float
    weights: Float64 | None = None

    def __post_init__(self) -> None:
        f, half = self.f, self.n / 2
        if isinstance(f, bool) or not isinstance(f, int | float | np.number):
            raise parameter_error("f", "a count or a share of the rows", f)
        if isinstance(f, int | np.integer):
            if not 0 <= f < half:
                raise parameter_error(
                    "f",
                    f"at least 0 and smaller than n/2 = {half:g}",
                    f,
                    "No rule holds against a majority: sample more clients.",
                )
        elif not 0 <= f < 0.5:
            raise parameter_error(
                "f",
                "a share in [0, 0.5), or a count as an int",
                f,
                "No rule tolerates more.",
            )
        if self.weights is not None:
            _check_weights(self.weights, self.n)

    @property
    def share(self) -> float:
        """λ, the Byzantine share of the weight."""
        return self.f / self.n if isinstance(self.f, int | np.integer) else self.f

    @property
    def count(self) -> int:
        """f, the number of Byzantine rows: ⌈λn⌉ for a share λ."""
        if isinstance(self.f, int | np.integer):
            return int(self.f)
        count = math.ceil(self.f * self.n - 1e-9)
        if 2 * count >= self.n:
            raise parameter_error(
                "f",
                f"a share that rounds up to less than half of n = {self.n} rows",
                self.f,
                f"It rounds up to {count}: sample more clients.",
            )
        return count

    @property
    def shares(self) -> Float64:
        """Weights of the rows, (n,), with a sum of 1."""
        if self.weights is None:
            return np.full(self.n, 1 / self.n)
        shares: Float64 = self.weights / self.weights.sum()
        return shares

    def kept(self, order: "np.ndarray[Any, Any]") -> Float64:
        """Return weights of the rows that come first, up to a share of 1 − λ in all.

        The weight of the last row is split; the weights sum to 1.

        Parameters
        ----------
        order : integer ndarray of shape (n,) or (m, n)
            One order of the rows, or m.
        """
        # In units in which n − f rows of weight 1 are kept exactly.
        weight = np.ones(self.n) if self.weights is None else self.weights
        total = weight.sum()
        whole = isinstance(self.f, int | np.integer)
        limit = total * (self.n - self.f) / self.n if whole else total * (1 - self.f)
        inorder = weight[order]
        taken = np.clip(limit - (np.cumsum(inorder, axis=-1) - inorder), 0, inorder)
        # What rounding leaves of a row is nothing: the row may be as large as it likes.
        taken[taken < _ROUNDING * total] = 0
        kept = np.zeros(order.shape)
        np.put_along_axis(kept, order, taken, axis=-1)
        kept /= kept.sum(axis=-1, keepdims=True)
        return kept

    def of(self, n: int) -> "Budget":
        """Return the budget of as many Byzantine rows among n other rows."""
        return Budget(n, self.count)


def _check_weights(weights: Float64, n: int) -> None:
    if weights.shape != (n,):
        raise parameter_error(
            "weights", f"of shape ({n},), one for each row", weights.shape
        )
    with np.errstate(over="ignore", invalid="ignore"):
        total = weights.sum()
    if not ((weights >= 0).all() and 0 < total < math.inf):
        raise parameter_error(
            "weights",
            "non-negative, with a sum that is finite and not zero",
            weights.tolist(),
            "Count examples or updates on the server.",
        )
