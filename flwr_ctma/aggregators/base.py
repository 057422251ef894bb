"""What a rule is: rows and a budget of Byzantine weight in, a point out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from flwr_ctma.aggregators.budget import Budget
from flwr_ctma.aggregators.points import Combination, CoordinateWise, Point
from flwr_ctma.engine.build import like
from flwr_ctma.engine.stack import Float64, Vector
from flwr_ctma.engine.threads import one_blas_thread
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import check_fields, spell

__all__ = [
    "Aggregate",
    "Aggregator",
    "Budget",
    "Combination",
    "CoordinateWise",
    "Point",
    "parts",
]


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

    Examples
    --------
    >>> from flwr_ctma import parse_aggregator
    >>> rule = parse_aggregator("ctma(cwmed)")
    >>> found = rule.aggregate(np.array([[1.0], [2.0], [3.0], [99.0]]), f=1)
    >>> found.vector, found.influence.round(2), found.distances
    (array([2.]), array([0.33, 0.33, 0.33, 0.  ]), array([ 1.,  0.,  1., 97.]))
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
        """κ of the rule's (f, κ)-robustness among n > 2f rows; None if none is known.

        For every set S of n − f rows: ‖A(x) − mean_S‖² ≤ κ · mean_{i in S} ‖x_i −
        mean_S‖². No rule has κ < f/(n − 2f) (Allouah et al., AISTATS 2023, Definition
        2 and Proposition 6), so none is robust at f ≥ n/2.
        """
        return None

    def solve(self, rows: Updates, budget: Budget) -> Point:
        """Find the point that the rule stands for among rows.

        Raises
        ------
        ValueError
            If the rows are too few for the budget, or have weights that the rule
            cannot use.
        """
        if budget.weights is not None and not self.weighted:
            raise parameter_error(
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
            vector = self.solve(rows, budget).vector(rows.stack)
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
            point = self.solve(rows, budget)
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
        needed = any(part.needs_reference for part in parts(self))
        if reference is not None and not needed:
            raise parameter_error(
                "reference", f"None for {self}, which uses none", "given", "Drop it."
            )
        if reference is not None and isinstance(updates, Updates):
            raise parameter_error(
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


def parts(rule: Aggregator) -> Iterator[Aggregator]:
    """Give a rule, the rules that it holds, and the rules that those hold."""
    yield rule
    for field in fields(rule):
        held = getattr(rule, field.name)
        if isinstance(held, Aggregator):
            yield from parts(held)


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
    """Without the row that no client sent."""
    if rows.reference is None:
        return influence
    return np.delete(influence, rows.reference)


def _like(updates: Any, vector: Vector) -> Any:
    return vector if isinstance(updates, Updates) else like(updates, vector)
