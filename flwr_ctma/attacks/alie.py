"""A little is enough."""

from dataclasses import dataclass
from math import floor
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Omniscient, Rows
from flwr_ctma.attacks.moments import deviation, mean

__all__ = ["ALIE", "largest_deviation"]


def largest_deviation(n: float, f: float) -> float:
    """How many standard deviations f of n rows can lie off and not stand out.

    s = ⌊n/2 + 1⌋ − f honest rows that lie farther off still make a majority with them:

        z = Φ⁻¹((n − f − s)/(n − f))

    Parameters
    ----------
    n : float
        Number of rows, or sum of their weights.
    f : float
        Number, or sum of the weights, of the malicious ones.

    Notes
    -----
    Half of the rows or more need no supporter, and z would be infinite: it is then that
    for one supporter.

    Examples
    --------
    >>> [round(largest_deviation(17, f), 3) for f in (3, 5, 8)]
    [0.18, 0.431, 1.221]
    """
    supporters = max(1, floor(n / 2 + 1) - f)
    quantile = (n - f - supporters) / (n - f)
    return NormalDist().inv_cdf(quantile) if quantile > 0 else 0.0


@dataclass(frozen=True)
class ALIE(Omniscient):
    """All colluders send μ − z·σ, mean and standard deviation of the honest updates.

    Coordinate by coordinate they lie within the honest spread, all on one side. Updates
    point against the gradients that the paper has: `mirror(alie)` is its other side.

    Parameters
    ----------
    z : float | None (default: None)
        How many standard deviations; `largest_deviation(n, f)` if None. Negative for
        the other side, which is `mirror(alie)` for the default.

    References
    ----------
    Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses for
    Distributed Learning", NeurIPS 2019, Algorithms 1 and 3.

    Examples
    --------
    μ = 2 and σ = √(2/3):

    >>> ALIE(z=1.5)(np.array([[1.0], [2.0], [3.0]]), num_malicious=1).round(3)
    array([[0.775]])
    """

    z: float | None = None

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """μ − z·σ."""
        h = len(honest)
        z = self.z
        if z is None:
            z = largest_deviation(float(weights.sum()), float(weights[h:].sum()))
        return mean(honest, weights[:h]) - z * deviation(honest, weights[:h])
