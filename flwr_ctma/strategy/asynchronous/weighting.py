"""How much each client's latest update counts, so that no flood can take over."""

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


# Of a share that is met exactly.
_ROUNDING = 1e-9


class ClientWeighting(ABC):
    """What clients' latest updates count before the cap."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        """Spell it as `parse_client_weighting` reads it."""
        return spell(self, _WEIGHINGS)

    @abstractmethod
    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """Weigh clients by what the server counted.

        Parameters
        ----------
        counts : ndarray of shape (n,)
            Updates that each client delivered, at least 1.
        ages : ndarray of shape (n,)
            Steps of the server since the model that the latest update answers was sent.
        """


@dataclass(frozen=True)
class Counts(ClientWeighting):
    """The number of updates a client delivered: whoever has averaged more knows more.

    References
    ----------
    Dahan and Levy, "Weight for Robustness", NeurIPS 2024 (arXiv 2501.09621).

    Examples
    --------
    >>> Counts()(np.array([1.0, 4.0]), ages=np.array([0.0, 3.0]))
    array([1., 4.])
    """

    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """The counts."""
        return counts


@dataclass(frozen=True)
class EqualWeights(ClientWeighting):
    """The same for every client that has delivered: what rules without weights do.

    Examples
    --------
    >>> EqualWeights()(np.array([1.0, 4.0]), ages=np.array([0.0, 3.0]))
    array([1., 1.])
    """

    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """Ones."""
        return np.ones_like(counts)


@dataclass(frozen=True)
class Staleness(ClientWeighting):
    """(1 + age)^-power: for clients that send updates, not averages over all they did.

    Parameters
    ----------
    power : float (default: 0.5)

    Raises
    ------
    ValueError
        If power is negative.

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
        if not self.power >= 0:
            raise parameter_error("power", "at least 0", self.power)

    def __call__(self, counts: Float64, ages: Float64) -> Float64:
        """Smaller the older the model that was trained."""
        discounts: Float64 = (1.0 + ages) ** -self.power
        return discounts


_WEIGHINGS: dict[str, type] = {
    "counts": Counts,
    "staleness": Staleness,
    "equal": EqualWeights,
}


def parse_client_weighting(text: str) -> ClientWeighting:
    """Build what a run-config spells: `counts`, `staleness(power=1)`, `equal`.

    Raises
    ------
    ValueError
        If the text spells none.

    Examples
    --------
    >>> parse_client_weighting("staleness(power=1)")
    Staleness(power=1.0)
    """
    return cast(ClientWeighting, parse(text, _WEIGHINGS, "client-weighting"))


def capped(weights: Float64, f: int, share: float) -> Float64 | None:
    """Cut weights to the largest c at which no f of them hold more than a share.

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
