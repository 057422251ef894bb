"""Rules: rows and a budget of Byzantine weight in, one vector out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar

import numpy as np

from flwr_ctma.aggregators.budget import Budget
from flwr_ctma.aggregators.points import Combination, CoordinateWise, Point
from flwr_ctma.engine.build import like
from flwr_ctma.engine.stack import Float64, Vector
from flwr_ctma.engine.threads import one_blas_thread
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import check_fields, spell

__all__ = [
    "RULES",
    "Aggregate",
    "Aggregator",
    "Budget",
    "Combination",
    "CoordinateWise",
    "MetaAggregator",
    "Point",
    "iter_rules",
    "needs_products",
]

RULES: dict[str, "type[Aggregator]"] = {}
"""Every rule that has a name, by the name that a run-config uses."""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The aggregated vector, the influence of each row, and its distance.

    Attributes
    ----------
    vector : as the updates: ndarray, torch.Tensor, or a list with one array per layer
    influence : ndarray of shape (n,)
        Coefficient of each row. For a rule that works coordinate by coordinate, the
        mean of its weights over the coordinates. It sums to 1 if rows are averaged.
    distances : ndarray of shape (n,)
        ‖row − vector‖ over the measured coordinates.

    Examples
    --------
    >>> from flwr_ctma import parse_aggregator
    >>> rule = parse_aggregator("ctma(cwmed)")
    >>> result = rule.aggregate(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    >>> result.vector, result.influence.round(2), result.distances
    (array([2.]), array([0.33, 0.33, 0.33, 0.  ]), array([ 1.,  0.,  1., 97.]))
    """

    vector: Any
    influence: Float64
    distances: Float64


@dataclass(frozen=True)
class Aggregator(ABC):
    """A rule that aggregates the updates of n clients, of which f may be Byzantine.

    A rule is an immutable value: two rules are equal if they have the same class and
    the same parameters. `str(rule)` is its spelling in a run-config. A subclass that
    names itself, `class Krum(Aggregator, name="krum")`, can be used in a run-config.
    """

    weighted: ClassVar[bool] = False
    """Whether rows may have weights. A share f then splits rows; otherwise the number
    of Byzantine rows is ⌈fn⌉."""
    in_groups: ClassVar[bool] = False
    """Whether the rule compares rows within groups, not all of them."""
    needs_reference: ClassVar[bool] = False
    """Whether the rule uses a vector of the caller: a trusted update or a start."""
    by_layer: ClassVar[bool] = False
    """Whether the rule treats the arrays of the model one by one."""

    def __init_subclass__(cls, *, name: str | None = None, **given: Any) -> None:
        super().__init_subclass__(**given)
        if name is None:
            return
        other = RULES.setdefault(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise parameter_error(
                "name", "free", name, f"{other.__module__}.{other.__qualname__} has it."
            )
        RULES[name] = cls  # a cell of a notebook that runs again

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def _point(self, rows: Updates, budget: Budget) -> Point:
        """Return the aggregate of rows that passed `check`."""

    def min_rows(self, f: int) -> int:
        """Return the smallest n for which the rule is defined with f Byzantine rows."""
        return 2 * f + 1

    def kappa(self, n: int, f: int) -> float | None:
        """Return κ of the rule's (f, κ)-robustness; None if no bound is known.

        For every set S of n − f rows: ‖A(x) − mean_S‖² ≤ κ · mean_{i in S} ‖x_i −
        mean_S‖². Every rule has κ ≥ f/(n − 2f) (Allouah et al., AISTATS 2023,
        Definition 2 and Proposition 6), so no rule is robust at f ≥ n/2.
        """
        return None

    def check(self, n: int, f: int | float, weighted: bool = False) -> None:
        """Raise an error if the rule is undefined for these numbers.

        No update is needed: a call with n finite rows raises exactly if this raises.
        The reference of a rule that needs one is not part of it.

        Parameters
        ----------
        n : int
            Number of rows.
        f : int or float
            Byzantine rows, as a count or a share; see `__call__`.
        weighted : bool (default: False)
            Whether the rows have weights.

        Raises
        ------
        ValueError
            With the parameter, its value and the remedy.

        Examples
        --------
        >>> from flwr_ctma.aggregators import Krum
        >>> Krum().check(n=17, f=7)
        >>> Krum().check(n=17, f=8)
        Traceback (most recent call last):
        ValueError: Parameter `f` should be at most 7 for krum among n = 17 rows. \
Found `f = 8`. Sample more clients, or use nnm(cwmed).
        """
        budget = Budget(n, f)
        if weighted and not self.weighted:
            raise parameter_error(
                "weights",
                f"None for {self}, whose definition counts rows",
                "given",
                "Use ctma, gm, cwmed, cwtm, nnm, caf, cclip or mean for weighted rows.",
            )
        self._check(budget, weighted)

    def _check(self, budget: Budget, weighted: bool) -> None:
        """Raise a ValueError for a budget in which this rule is undefined."""
        if not self.weighted:
            self._check_rows(budget)

    def _check_rows(self, budget: Budget) -> None:
        n, f = budget.n, budget.count
        if n >= self.min_rows(f):
            return
        fewer = [g for g in range(f) if self.min_rows(g) <= n]
        raise parameter_error(
            "f",
            f"at most {fewer[-1]} for {self} among n = {n} rows"
            if fewer
            else f"a number of Byzantine rows, of at least {self.min_rows(f)} rows for "
            f"{self}, and not of n = {n}",
            budget.f,
            "Sample more clients, or use nnm(cwmed).",
        )

    def solve(self, rows: Updates, budget: Budget) -> Point:
        """Return the aggregate of rows as a point that is not computed yet.

        Raises
        ------
        ValueError
            As `check` does.
        """
        self.check(budget.n, budget.f, budget.weights is not None)
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
            One row per client.
        f : int or float
            How many rows may be Byzantine: a count, or a share in [0, 0.5) of the rows
            (of their total weight if there are weights).
        weights : sequence of n floats, optional
            Non-negative; uniform if None.
        reference : vector of shape (d,), optional
            For rules that use one: the server's own update (FLTrust, MoNNA, Zeno), the
            previous output (CenteredClipping).

        Returns
        -------
        vector of shape (d,)
            Of the type, dtype and device of the updates; for Updates a list with one
            array per layer.

        Raises
        ------
        ValueError
            With the parameter, its value and the remedy: rows that are not finite, f of
            half the rows or more, too few rows for the rule, weights or a reference
            that the rule cannot use.
        """
        rows, budget = self._prepare(updates, f, weights, reference)
        with one_blas_thread():
            vector = self.solve(rows, budget).vector(rows.stack)
        return _like(updates, vector)

    def aggregate(
        self,
        updates: Any,
        f: int | float,
        weights: Any = None,
        reference: Any = None,
    ) -> Aggregate:
        """Aggregate updates, and return each row's influence and distance as well.

        See `__call__` for the parameters and `Aggregate` for the result.
        """
        rows, budget = self._prepare(updates, f, weights, reference)
        with one_blas_thread():
            point = self.solve(rows, budget)
            distances = np.sqrt(point.squared_distances(rows))
            return Aggregate(
                _like(updates, point.vector(rows.stack)),
                _of_clients(point.influence(rows.stack), rows),
                distances,
            )

    def weigh(
        self,
        updates: Any,
        f: int | float,
        weights: Any = None,
        reference: Any = None,
    ) -> Float64 | None:
        """Return the coefficient of each row, or None if coordinates differ in them.

        The coefficients may be applied to other rows of the same clients, as when a
        client is judged by its past and counted by its present. They sum to 1 for rules
        that average rows, and to less if rows are clipped or the reference counts.

        Parameters
        ----------
        updates, f, weights, reference
            See `__call__`.

        Returns
        -------
        ndarray of shape (n,), or None

        Examples
        --------
        >>> from flwr_ctma import parse_aggregator
        >>> x = np.array([[1.0], [2.0], [3.0], [99.0]])
        >>> parse_aggregator("multikrum(m=2)").weigh(x[[0, 1, 2, 3, 1]], f=1)
        array([0. , 0.5, 0. , 0. , 0.5])
        >>> parse_aggregator("cwmed").weigh(x, f=1) is None
        True
        """
        rows, budget = self._prepare(updates, f, weights, reference)
        with one_blas_thread():
            coefficients = self.solve(rows, budget).weights()
        return None if coefficients is None else _of_clients(coefficients, rows)

    def __str__(self) -> str:
        """Return the spelling in a run-config, `ctma(gm)`; the repr of a nameless rule.

        `parse_aggregator(str(rule)) == rule`.
        """
        return spell(self, RULES)

    def _prepare(
        self, updates: Any, f: int | float, weights: Any, reference: Any
    ) -> tuple[Updates, Budget]:
        needed = any(rule.needs_reference for rule in iter_rules(self))
        if reference is not None and not needed:
            raise parameter_error(
                "reference", f"None for {self}, which uses none", "given", "Drop it."
            )
        if reference is not None and isinstance(updates, Updates):
            raise parameter_error(
                "reference",
                "None for Updates, which hold their own",
                "given",
                "Write `Updates.of(layers, reference)`.",
            )
        rows = (
            updates
            if isinstance(updates, Updates)
            else Updates.of(updates, reference=reference)
        )
        return rows, Budget(rows.n, f, _as_weights(weights))


@dataclass(frozen=True)
class MetaAggregator(Aggregator):
    """A rule that holds a base rule, which sees as many rows and the same budget.

    Parameters
    ----------
    base : Aggregator
    """

    weighted: ClassVar[bool] = True

    base: Aggregator

    def min_rows(self, f: int) -> int:
        """Return the smallest n of the base rule."""
        return self.base.min_rows(f)

    def _check(self, budget: Budget, weighted: bool) -> None:
        self.base.check(budget.n, budget.f, weighted)


def iter_rules(rule: Aggregator) -> Iterator[Aggregator]:
    """Iterate over a rule, the rules that it holds, and those that they hold."""
    yield rule
    for field in fields(rule):
        held = getattr(rule, field.name)
        if isinstance(held, Aggregator):
            yield from iter_rules(held)


def is_by_layer(rule: Aggregator) -> bool:
    """Return whether a rule, or one that it holds, treats arrays one by one."""
    return any(part.by_layer for part in iter_rules(rule))


@cache
def needs_products(rule: Aggregator) -> bool:
    """Return whether a rule computes the inner products of all rows: it is tried.

    Examples
    --------
    >>> from flwr_ctma import parse_aggregator
    >>> [needs_products(parse_aggregator(name)) for name in ("ctma(gm)", "ctma(cwmed)")]
    [True, False]
    """
    if any(part.needs_reference or part.in_groups for part in iter_rules(rule)):
        return False
    n = max(3, rule.min_rows(1))
    x = np.random.default_rng(0).random((n, 3), np.float32)
    # Two layers: products of each layer are not those of the rows.
    rows = Updates.of([Layer(x[:, :2]), Layer(x[:, 2:])])
    try:
        rule.solve(rows, Budget(n, 1))
    except ValueError:  # f = 1 of n is not for this rule
        return False
    return rows.stack.has_moments


def _as_weights(weights: Any) -> Float64 | None:
    if weights is None:
        return None
    try:
        array = np.asarray(weights)
    except (TypeError, ValueError) as error:
        raise parameter_error("weights", "a sequence of numbers", weights) from error
    if array.dtype.kind not in "fiu":
        raise parameter_error("weights", "a sequence of real numbers", weights)
    return array.astype(np.float64)


def _of_clients(influence: Float64, rows: Updates) -> Float64:
    """Drop the reference, which no client sent."""
    if rows.reference is None:
        return influence
    return np.delete(influence, rows.reference)


def _like(updates: Any, vector: Vector) -> Any:
    return vector if isinstance(updates, Updates) else like(updates, vector)
