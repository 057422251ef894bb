"""What a rule is: rows and a budget of Byzantine weight in, a point out."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from flwr_ctma.errors import wrong
from flwr_ctma.parallel import one_blas_thread
from flwr_ctma.spec import check_fields, spell
from flwr_ctma.stack import Columns, Float64, Kernel, Stack, Vector, squared_distances
from flwr_ctma.updates import Updates

__all__ = ["Aggregate", "Aggregator", "Budget", "Columnwise", "Combination", "Point"]

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Budget:
    """How much of the rows may be Byzantine.

    Parameters
    ----------
    n : int
        Number of rows.
    f : int or float
        A count of rows, or a share of them in [0, 0.5): of their weight, if they have
        weights.
    weights : ndarray of shape (n,), optional
        Non-negative; uniform if None.
    """

    n: int
    f: int | float
    weights: Float64 | None = None

    def __post_init__(self) -> None:
        f, half = self.f, self.n / 2
        if isinstance(f, bool) or not isinstance(f, int | float | np.number):
            raise wrong("f", "a count or a share of the rows", f)
        if isinstance(f, int | np.integer):
            if not 0 <= f < half:
                raise wrong(
                    "f",
                    f"at least 0 and smaller than n/2 = {half:g}",
                    f,
                    "No rule holds against a majority: sample more clients.",
                )
        elif not 0 <= f < 0.5:
            raise wrong(
                "f",
                "a share in [0, 0.5), or a count as an int",
                f,
                "No rule does more.",
            )
        if self.weights is not None:
            _check_weights(self.weights, self.n)

    @property
    def share(self) -> float:
        """λ, the Byzantine share of the weight."""
        return self.f / self.n if isinstance(self.f, int | np.integer) else self.f

    @property
    def count(self) -> int:
        """f, the number of Byzantine rows: ⌈λn⌉ of a share."""
        if isinstance(self.f, int | np.integer):
            return int(self.f)
        count = math.ceil(self.f * self.n - 1e-9)
        if 2 * count >= self.n:
            raise wrong(
                "f",
                f"a share that rounds up to less than half of n = {self.n} rows",
                self.f,
                f"It rounds up to {count}: sample more clients.",
            )
        return count

    @property
    def shares(self) -> Float64:
        """Weights that sum to 1, (n,)."""
        if self.weights is None:
            return np.full(self.n, 1 / self.n)
        shares: Float64 = self.weights / self.weights.sum()
        return shares

    def kept(self, order: "np.ndarray[Any, Any]") -> Float64:
        """Weights of the rows that come first in an order until 1 − λ is reached.

        The weight of the last one is split; the result sums to 1.
        """
        # In units in which n − f rows of weight 1 are kept exactly.
        weight = np.ones(self.n) if self.weights is None else self.weights
        total = weight.sum()
        whole = isinstance(self.f, int | np.integer)
        limit = total * (self.n - self.f) / self.n if whole else total * (1 - self.f)
        before = np.cumsum(weight[order]) - weight[order]
        kept = np.zeros(self.n)
        kept[order] = np.clip(limit - before, 0, weight[order])
        # What rounding leaves of a row is nothing: the row may be as large as it likes.
        kept[kept < _ROUNDING * total] = 0
        kept /= kept.sum()
        return kept

    def of(self, n: int) -> "Budget":
        """The same number of Byzantine rows among n others."""
        return Budget(n, self.count)


class Point(ABC):
    """A vector that a rule found, and what is known of it without computing it."""

    @abstractmethod
    def vector(self, stack: Stack) -> Vector:
        """The vector itself."""

    @abstractmethod
    def squared_distances(self, rows: Updates) -> Float64:
        """Squared distance of each row to the vector."""

    @abstractmethod
    def influence(self, stack: Stack) -> Float64:
        """How much each row of the stack counts in the vector."""

    def weights(self) -> Float64 | None:
        """The influence, if it is the same in every coordinate."""
        return None


@dataclass(frozen=True, eq=False)
class Combination(Point):
    """The vector `coefficients @ stack`."""

    coefficients: Float64

    def vector(self, stack: Stack) -> Vector:
        """One weighted sum of the rows."""
        return stack.combine(self.coefficients)

    def squared_distances(self, rows: Updates) -> Float64:
        """From inner products, if they are at hand: the vector is not computed."""
        if not rows.stack.has_moments:
            found = rows.stack.deviations(self.vector(rows.stack), rows.mixing)
            if np.isfinite(found).all():
                return found
        c = self.coefficients
        moments = rows.stack.moments
        if rows.mixing is None and np.isclose(c.sum(), 1.0, rtol=1e-12):
            g = moments.about_pivot()
            return np.maximum(np.diag(g) - 2 * (g @ c) + c @ g @ c, 0.0)
        matrix = np.eye(rows.stack.n) if rows.mixing is None else rows.mixing
        return squared_distances(moments.about_pivot(np.vstack([matrix, c])))[-1, :-1]

    def influence(self, stack: Stack) -> Float64:
        """The coefficients."""
        return self.coefficients

    def weights(self) -> Float64:
        """The coefficients."""
        return self.coefficients


@dataclass(frozen=True, eq=False)
class Columnwise(Point):
    """The vector that a kernel gives coordinate by coordinate.

    A visit to all coordinates is made when the vector or a distance is asked for, and
    measures only in the second case.
    """

    kernel: Kernel
    rows: Updates

    @cached_property
    def _found(self) -> Columns:
        return self.rows.columns(self.kernel)

    def vector(self, stack: Stack) -> Vector:
        """What the kernel gives."""
        if "_found" in vars(self):
            return self._found.vector
        return stack.values(self.kernel, self.rows.mixing)

    def squared_distances(self, rows: Updates) -> Float64:
        """What the visit measured; another visit only for other rows."""
        if rows is self.rows:
            return self._found.squared_distances
        return rows.stack.deviations(self._found.vector, rows.mixing)

    def influence(self, stack: Stack) -> Float64:
        """Another visit, to see which row every value came from."""
        return self.rows.expand(stack.shares(self.kernel, self.rows.mixing))


@dataclass(frozen=True, eq=False)
class Aggregate:
    """A vector, who counted how much in it, and how far each row is from it.

    Attributes
    ----------
    vector : as the updates: ndarray, torch.Tensor, or a list of ndarray by panel
    influence : ndarray of shape (n,)
        Coefficient of each row; for a rule that works coordinate by coordinate the
        mean over coordinates of its weight there. It sums to 1 where rows are averaged.
    distances : ndarray of shape (n,)
        ‖row − vector‖ over measured coordinates.
    """

    vector: Any
    influence: Float64
    distances: Float64


@dataclass(frozen=True)
class Aggregator(ABC):
    """A rule that turns the updates of n clients into one, up to f of them Byzantine.

    A rule is an immutable value: two are equal if they are the same rule with the same
    parameters, and `str(rule)` is how it is spelled in a run-config.
    """

    weighted: ClassVar[bool] = False
    """Whether the definition says what a weight of a row means."""
    needs_reference: ClassVar[bool] = False
    """Whether the rule starts from, or trusts, a vector that the caller gives."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def _point(self, rows: Updates, budget: Budget) -> Point:
        """Find the point; weights have been checked."""

    def kappa(self, n: int, f: int) -> float | None:
        """κ of the rule's (f, κ)-robustness among n rows; None where none is known.

        For every set S of n − f rows: ‖A(x) − mean_S‖² ≤ κ · mean_{i in S} ‖x_i −
        mean_S‖². No rule has κ < f/(n − 2f) (Allouah et al., AISTATS 2023, Definition
        2 and Proposition 6), so none is robust at f ≥ n/2.
        """
        return None

    def locate(self, rows: Updates, budget: Budget) -> Point:
        """Find the point that the rule stands for among rows.

        Raises
        ------
        ValueError
            If the rows are too few for the budget, or have weights that the rule
            cannot use.
        """
        if budget.weights is not None and not self.weighted:
            raise wrong(
                "weights",
                f"None for {self}, whose definition counts rows",
                "given",
                "Use ctma, gm, cwmed, cwtm, cclip or mean for weighted rows.",
            )
        return self._point(rows, budget)

    def __call__(
        self,
        updates: Any,
        f: int | float,
        weights: Any = None,
        reference: Any = None,
    ) -> Any:
        """Aggregate updates.

        Parameters
        ----------
        updates : ndarray or torch.Tensor of shape (n, d), or Updates
            One row for each client.
        f : int or float
            How many may be Byzantine: a count, or a share in [0, 0.5) of the clients,
            of their total weight with weights.
        weights : sequence of n floats, optional
            Non-negative; uniform if None.
        reference : vector of shape (d,), optional
            For the rules that need one: the server's own update (FLTrust), the
            previous output (CenteredClipping).

        Returns
        -------
        vector of shape (d,)
            Of the kind, dtype and device of the updates; for Updates a list with one
            array for each panel.

        Raises
        ------
        ValueError
            Naming the parameter, its value and the remedy: rows that are not finite,
            f of half the rows or more, too few rows for the rule, weights or a
            reference that it cannot use.
        """
        rows, budget = self._prepare(updates, f, weights, reference)
        with one_blas_thread():
            vector = self.locate(rows, budget).vector(rows.stack)
        return _like(updates, vector)

    def aggregate(
        self,
        updates: Any,
        f: int | float,
        weights: Any = None,
        reference: Any = None,
    ) -> Aggregate:
        """Aggregate updates and say who counted how much and how far each row was.

        See `__call__` for the parameters and `Aggregate` for the result.
        """
        rows, budget = self._prepare(updates, f, weights, reference)
        with one_blas_thread():
            point = self.locate(rows, budget)
            distances = np.sqrt(point.squared_distances(rows))
            return Aggregate(
                _like(updates, point.vector(rows.stack)),
                _of_clients(point.influence(rows.stack), rows),
                distances,
            )

    def __str__(self) -> str:
        """How the rule is spelled in a run-config: `ctma(gm)`."""
        from flwr_ctma.aggregators import RULES

        return spell(self, RULES) if type(self) in RULES.values() else repr(self)

    def _prepare(
        self, updates: Any, f: int | float, weights: Any, reference: Any
    ) -> tuple[Updates, Budget]:
        if reference is not None and not _needs_reference(self):
            raise wrong(
                "reference", f"None for {self}, which uses none", "given", "Drop it."
            )
        if reference is not None and isinstance(updates, Updates):
            raise wrong(
                "reference",
                "None for Updates, which hold their own",
                "given",
                "Write `Updates.of(panels, reference)`.",
            )
        rows = (
            updates
            if isinstance(updates, Updates)
            else Updates.of(updates, reference=reference)
        )
        return rows, Budget(rows.n, f, _as_weights(weights))


def _needs_reference(rule: Aggregator) -> bool:
    held = (getattr(rule, field.name) for field in fields(rule))
    return rule.needs_reference or any(
        _needs_reference(item) for item in held if isinstance(item, Aggregator)
    )


def _as_weights(weights: Any) -> Float64 | None:
    if weights is None:
        return None
    try:
        array = np.asarray(weights)
    except (TypeError, ValueError) as error:
        raise wrong("weights", "a sequence of numbers", weights) from error
    if array.dtype.kind not in "fiu":
        raise wrong("weights", "a sequence of real numbers", weights)
    return array.astype(np.float64)


def _check_weights(weights: Float64, n: int) -> None:
    if weights.shape != (n,):
        raise wrong("weights", f"of shape ({n},), one for each row", weights.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        total = weights.sum()
    if not ((weights >= 0).all() and 0 < total < math.inf):
        raise wrong(
            "weights",
            "non-negative, with a sum that is finite and not zero",
            weights.tolist(),
            "Count examples or updates on the server.",
        )


def _of_clients(influence: Float64, rows: Updates) -> Float64:
    """Without the row that no client sent."""
    if rows.reference is None:
        return influence
    return np.delete(influence, rows.reference)


def _like(updates: Any, vector: Vector) -> Any:
    if isinstance(updates, Updates):
        return vector
    if isinstance(updates, np.ndarray):
        return vector[0].astype(updates.dtype, copy=False)
    from flwr_ctma.gpu import as_tensor

    return as_tensor(vector[0], updates)
