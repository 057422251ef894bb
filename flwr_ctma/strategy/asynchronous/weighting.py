"""The weight of each client's latest update, and the cap that any f clients keep."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import check_fields, parse, spell

__all__ = [
    "ClientWeighting",
    "Counts",
    "EqualWeights",
    "Staleness",
    "capped",
    "parse_client_weighting",
]

Float64 = NDArray[np.float64]


# Relative, where a share is met exactly.
_ROUNDING = 1e-9


class ClientWeighting(ABC):
    """The weights of clients' latest updates, before the cap."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        """Return the text that `parse_client_weighting` reads."""
        return spell(self, _WEIGHTINGS)

    @abstractmethod
    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """Return the weight of each client.

        Parameters
        ----------
        counts : ndarray of shape (n,)
            Updates of each client that the server counted, at least 1.
        ages : ndarray of shape (n,)
            Steps of the server since the model that each latest update is from.
        """


@dataclass(frozen=True)
class Counts(ClientWeighting):
    """The number of a client's updates: a mean over more updates has less noise.

    References
    ----------
    Dahan and Levy, "Weight for Robustness", NeurIPS 2024 (arXiv 2501.09621).

    Examples
    --------
    >>> Counts()(np.array([1.0, 4.0]), ages=np.array([0.0, 3.0]))
    array([1., 4.])
    """

    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """Return the counts."""
        return counts


@dataclass(frozen=True)
class EqualWeights(ClientWeighting):
    """The same weight for every client that has delivered, as in rules without weights.

    Examples
    --------
    >>> EqualWeights()(np.array([1.0, 4.0]), ages=np.array([0.0, 3.0]))
    array([1., 1.])
    """

    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """Return ones."""
        return np.ones_like(counts)


@dataclass(frozen=True)
class Staleness(ClientWeighting):
    """The weight (1 + age)^-power, for clients that send plain updates.

    Parameters
    ----------
    power : float (default: 0.5)

    Raises
    ------
    ValueError
        If power is negative or not finite.

    References
    ----------
    Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", 2019, section 5.

    Examples
    --------
    >>> Staleness(power=1)(np.array([1.0, 4.0]), ages=np.array([0.0, 3.0]))
    array([1.  , 0.25])
    """

    power: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.power < float("inf"):
            raise parameter_error("power", "at least 0, and finite", self.power)

    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """Return smaller weights for older models."""
        discounts: Float64 = (1.0 + ages) ** -self.power
        return discounts


_WEIGHTINGS: dict[str, type] = {
    "counts": Counts,
    "staleness": Staleness,
    "equal": EqualWeights,
}


def parse_client_weighting(text: str) -> ClientWeighting:
    """Return the client weighting that a text spells, such as `staleness(power=1)`.

    The names are `counts`, `staleness` and `equal`.

    Raises
    ------
    ValueError
        If the text spells no client weighting.

    Examples
    --------
    >>> parse_client_weighting("staleness(power=1)")
    Staleness(power=1.0)
    """
    return cast(ClientWeighting, parse(text, _WEIGHTINGS, "client-weighting"))


def capped(weights: Float64, f: int, share: float) -> Float64 | None:
    """Return weights cut at the largest c at which any f hold at most a share.

    min(s_i, c) with the largest c for which the f heaviest have at most λ of the sum.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        Non-negative.
    f : int
        How many rows may be Byzantine.
    share : float
        λ.

    Returns
    -------
    ndarray of shape (n,), or None
        None if even equal weights of those that are not zero give f of them more.

    Examples
    --------
    >>> capped(np.array([1.0, 2.0, 3.0, 600.0]), f=1, share=0.4)
    array([1., 2., 3., 4.])
    >>> capped(np.array([1.0, 2.0]), f=1, share=0.4) is None
    True
    """

    def spare(c: float) -> float:
        cut = np.sort(np.minimum(weights, c))
        return float(share * cut.sum() - cut[max(len(cut) - f, 0) :].sum())

    levels = np.unique(weights[weights > 0])
    if not levels.size or spare(levels[0]) < -_ROUNDING * levels[0]:
        return None
    if spare(levels[-1]) >= -_ROUNDING * levels[-1]:
        return weights
    # Between two levels `spare` is linear, and it is negative from its root on.
    low, high = 0, len(levels) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if spare(levels[middle]) >= 0:
            low = middle
        else:
            high = middle
    a, b = levels[low], levels[high]
    left, right = max(spare(a), 0.0), spare(b)
    cut: Float64 = np.minimum(weights, a + (b - a) * left / (left - right))
    return cut
