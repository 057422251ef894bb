"""Attacks on the update of one client: the model it sends minus the one it received.

u is the client's own honest update: all floating-point arrays as one vector.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = [
    "GaussianNoise",
    "NonFinite",
    "Scaling",
    "SignFlip",
    "UpdateAttack",
    "Zero",
]

Array = NDArray[Any]


class UpdateAttack(Attack):
    """Train honestly, then send `attack.corrupt(update, rng)` instead of the update."""

    @abstractmethod
    def corrupt(self, update: Array, rng: np.random.Generator) -> Array:
        """Return the malicious update, or the part of it in place of an honest part."""

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Reply with the received model plus the corrupted update."""
        reply = respond(message, context)
        return messages.map_updates(reply, message, lambda u: self.corrupt(u, rng))


@dataclass(frozen=True)
class SignFlip(UpdateAttack, name="signflip"):
    """Send the opposite of the client's own honest update: −u.

    References
    ----------
    Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed
    Learning from Heterogeneous Datasets", AAAI 2019. (In ByzFL it is the opposite of
    the *mean* of the honest, which here is `IPM(epsilon=1.0)`.)

    Examples
    --------
    >>> SignFlip().corrupt(np.array([1.0, -2.0]), np.random.default_rng(0))
    array([-1.,  2.])
    """

    def corrupt(self, update: Array, rng: np.random.Generator) -> Array:
        """−u."""
        return -update


@dataclass(frozen=True)
class GaussianNoise(UpdateAttack, name="noise"):
    """Send noise in place of the update, each coordinate drawn from N(mean, std²).

    Parameters
    ----------
    std : float (default: 1.0)
        Standard deviation, in units of the update. At least 0.
    mean : float (default: 0.0)
        Mean.

    Raises
    ------
    ValueError
        If std is negative.

    References
    ----------
    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, §5, with std 200.

    Examples
    --------
    >>> sent = GaussianNoise(std=2.0).corrupt(np.zeros(10000), np.random.default_rng(0))
    >>> round(float(sent.std()), 1)
    2.0
    """

    std: float = 1.0
    mean: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.std >= 0:
            raise parameter_error("std", "0 or more", self.std)

    def corrupt(self, update: Array, rng: np.random.Generator) -> Array:
        """A draw from N(mean, std²) for each coordinate."""
        return rng.normal(self.mean, self.std, update.shape)


@dataclass(frozen=True)
class Zero(UpdateAttack, name="zero"):
    """Send the received model back: the zero update of a free rider.

    Examples
    --------
    >>> Zero().corrupt(np.array([1.0, -2.0]), np.random.default_rng(0))
    array([0., 0.])
    """

    def corrupt(self, update: Array, rng: np.random.Generator) -> Array:
        """Zeros."""
        return np.zeros_like(update)


@dataclass(frozen=True)
class Scaling(UpdateAttack, name="scaling"):
    """Send a multiple of the client's own update: γu.

    With γ = n, the mean of n clients is the attacker's own model, if the others changed
    nothing: `both(backdoor, scaling(factor=17))` is model replacement.

    Parameters
    ----------
    factor : float (default: 10.0)
        γ; negative for a boosted sign flip.

    References
    ----------
    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, Eq. 3.

    Examples
    --------
    >>> Scaling(factor=17.0).corrupt(np.array([1.0, -2.0]), np.random.default_rng(0))
    array([ 17., -34.])
    """

    factor: float = 10.0

    def corrupt(self, update: Array, rng: np.random.Generator) -> Array:
        """γu."""
        return self.factor * update


@dataclass(frozen=True)
class NonFinite(UpdateAttack, name="nonfinite"):
    """Overwrite coordinates of the update with NaN or an infinity.

    Parameters
    ----------
    value : str (default: "nan")
        "nan", "inf" or "-inf".
    share : float (default: 1.0)
        Share of the coordinates of each array, in [0, 1]; at least one coordinate.

    Raises
    ------
    ValueError
        If value is another word, or share is not in [0, 1].

    Examples
    --------
    >>> NonFinite(share=0.1).corrupt(np.zeros(3), np.random.default_rng(0))
    array([ 0.,  0., nan])
    """

    value: str = "nan"
    share: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.value not in ("nan", "inf", "-inf"):
            raise parameter_error("value", "one of nan, inf, -inf", self.value)
        if not 0 <= self.share <= 1:
            raise parameter_error("share", "in [0, 1]", self.share)

    def corrupt(self, update: Array, rng: np.random.Generator) -> Array:
        """The update with some coordinates overwritten."""
        forged = np.array(update)
        count = min(forged.size, max(1, round(self.share * forged.size)))
        where = rng.choice(forged.size, count, replace=False, shuffle=False)
        forged.flat[where] = float(self.value)
        return forged
