"""The attack on coordinate-wise rules of Fang et al."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Omniscient, Rows
from flwr_ctma.attacks.moments import mean
from flwr_ctma.errors import parameter_error

__all__ = ["Fang"]


@dataclass(frozen=True)
class Fang(Omniscient):
    """Each colluder goes, in each coordinate, just beyond the honest, the wrong way.

    Where the mean of the honest is positive it sends a number below their smallest m,
    drawn from [m/b, m] if m > 0 and from [bm, m] otherwise; where the mean is negative,
    one above their largest M, from [M, M/b] if M < 0 and from [M, bM] otherwise.

    Parameters
    ----------
    b : float (default: 2.0)
        How far beyond. Larger than 1.

    Raises
    ------
    ValueError
        If b is not larger than 1.

    References
    ----------
    Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust
    Federated Learning", USENIX Security 2020, §4.3, with full knowledge.
    Blades calls it the adaptive attack and lets all colluders send one draw.

    Examples
    --------
    Below the smallest, 2, and above the largest, −1:

    >>> attack = Fang()(np.array([[2.0, -1.0], [4.0, -3.0]]), num_malicious=1)
    >>> bool(1 <= attack[0, 0] <= 2), bool(-1 <= attack[0, 1] <= -0.5)
    (True, True)
    """

    b: float = 2.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.b > 1:
            raise parameter_error("b", "larger than 1", self.b)

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """A draw for each colluder."""
        h, d = honest.shape
        positive = mean(honest, weights[:h]) > 0
        edge = np.where(positive, honest.min(axis=0), honest.max(axis=0))
        # Away from the honest: below a positive m it is towards 0, below others not.
        end = np.where(positive == (edge > 0), edge / self.b, edge * self.b)
        draws = rng.random((len(weights) - h, d)).astype(honest.dtype)
        forged: Rows = edge + draws * (end - edge)
        return forged
