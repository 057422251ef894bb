"""What colluders know when they choose their updates."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.statistics import weighted_mean, weighted_std
from flwr_ctma.errors import parameter_error

__all__ = ["Knowledge", "Memory", "Rows"]

Float64 = NDArray[np.float64]
Rows = NDArray[np.floating[Any]]
Memory = MutableMapping[str, dict[str, Any]]
"""Plain data and arrays that each attack, by its spelling, keeps between rounds."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What colluders know in one round.

    Parameters
    ----------
    honest : ndarray of shape (h, d)
        Updates of the honest clients.
    malicious : ndarray of shape (f, d)
        Updates that the malicious clients computed from their own data.
    rng : np.random.Generator
        The colluders' common source of randomness.
    weights : ndarray of shape (h + f,), optional
        Weight of each row in the aggregation, the honest first; 1 each if None.
    server_round : int (default: 1)
        Number of the round.
    model : ndarray of shape (d,), optional
        The global model that the server sent.
    memory : Memory, optional
        What the attacks kept from earlier rounds. Attacks write to it.
    reference : ndarray of shape (d,), optional
        The row that the rule in use trusts or starts from; see `Aggregator`.

    Examples
    --------
    >>> known = Knowledge(
    ...     honest=np.array([[1.0], [3.0]]),
    ...     malicious=np.array([[2.0]]),
    ...     rng=np.random.default_rng(0),
    ... )
    >>> known.mean, known.std, known.f
    (array([2.]), array([1.]), 1)
    """

    honest: Rows
    malicious: Rows
    rng: np.random.Generator
    weights: Float64 = None  # type: ignore[assignment]
    server_round: int = 1
    model: Rows | None = None
    memory: Memory = field(default_factory=dict)
    reference: Rows | None = None

    def __post_init__(self) -> None:
        """Check shapes, dtype and weights."""
        if self.honest.ndim != 2 or 0 in self.honest.shape:
            expected = "floats of shape (h, d), one row for each honest client"
        elif self.honest.dtype.kind != "f":
            expected = "floats"
        else:
            expected = ""
        if expected:
            found = f"{self.honest.dtype} of shape {self.honest.shape}"
            raise parameter_error("honest", expected, found)
        n = len(self.honest) + len(self.malicious)
        if self.weights is None:
            object.__setattr__(self, "weights", np.ones(n))
        elif len(self.weights) != n or not np.all(np.asarray(self.weights) >= 0):
            raise parameter_error(
                "weights",
                f"{n} numbers, none negative: one for each honest client, then one for "
                "each malicious one",
                self.weights,
            )
        else:
            object.__setattr__(self, "weights", np.asarray(self.weights, np.float64))
        if not self.honest_weights.any():
            raise parameter_error(
                "weights", "not all zero for the honest", self.weights
            )

    @property
    def f(self) -> int:
        """Number of malicious clients."""
        return len(self.malicious)

    @property
    def honest_weights(self) -> Float64:
        """Weight of each honest row."""
        return self.weights[: len(self.honest)]

    @property
    def shares(self) -> Float64:
        """Weights of the honest rows, divided by their sum."""
        shares: Float64 = self.honest_weights / self.honest_weights.sum()
        return shares

    @cached_property
    def mean(self) -> Rows:
        """μ, the weighted mean of the honest updates."""
        return weighted_mean(self.honest, self.honest_weights)

    @cached_property
    def std(self) -> Rows:
        """σ, their weighted standard deviation, coordinate by coordinate."""
        return weighted_std(self.honest, self.honest_weights)

    @property
    def spread(self) -> float:
        """‖σ‖, the root mean square distance of the honest updates to their mean."""
        return float(np.linalg.norm(self.std.astype(np.float64)))

    def recall(self, name: str) -> dict[str, Any]:
        """Return what an attack kept, to read and to write; empty at first.

        A strategy may change the arrays of the model, for example integers to floats
        when it averages. What was kept of rows of another length is dropped.
        """
        memory = self.memory.setdefault(name, {})
        if memory.get("width") != self.honest.shape[1]:
            memory.clear()
            memory["width"] = self.honest.shape[1]
        return memory

    def without_weightless(self) -> "Knowledge":
        """Leave out the honest rows that count for nothing."""
        counts = self.honest_weights > 0
        if counts.all():
            return self
        kept = np.append(counts, np.ones(self.f, bool))
        return replace(self, honest=self.honest[counts], weights=self.weights[kept])
