"""A little is enough."""

from dataclasses import dataclass
from math import floor
from statistics import NormalDist

from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows

__all__ = ["ALIE", "largest_deviation"]


def largest_deviation(n: float, f: float) -> float:
    """Return by how many standard deviations f of n rows can deviate unnoticed.

    With the s = ⌊n/2 + 1⌋ − f honest rows that deviate more they are a majority:

        z = Φ⁻¹((n − f − s)/(n − f))

    Parameters
    ----------
    n : float
        Number of rows, or sum of their weights.
    f : float
        Number, or sum of the weights, of the malicious ones.

    Notes
    -----
    Half of the rows or more need no supporter, and z would be infinite. The function
    then returns z for one supporter.

    Examples
    --------
    >>> [round(largest_deviation(17, f), 3) for f in (3, 5, 8)]
    [0.18, 0.431, 1.221]
    """
    supporters = max(1, floor(n / 2 + 1) - f)
    quantile = (n - f - supporters) / (n - f)
    return NormalDist().inv_cdf(quantile) if quantile > 0 else 0.0


@dataclass(frozen=True)
class ALIE(Omniscient, name="alie"):
    """All colluders send μ − z·σ, mean and standard deviation of the honest updates.

    In every coordinate they lie within the honest spread, all on the same side. The
    paper's rows are gradients, which point against updates: `mirror(alie)` is μ + z·σ.

    Parameters
    ----------
    z : float | None (default: None)
        Number of standard deviations; `largest_deviation(n, f)` if None. Negative for
        the other side.

    References
    ----------
    Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses for
    Distributed Learning", NeurIPS 2019, Algorithms 1 and 3.

    Examples
    --------
    μ = 2 and σ = √(2/3):

    >>> import numpy as np
    >>> ALIE(z=1.5)(np.array([[1.0], [2.0], [3.0]]), num_malicious=1).round(3)
    array([[0.775]])
    """

    z: float | None = None

    def craft(self, known: Knowledge) -> Rows:
        """μ − z·σ."""
        z = self.z
        if z is None:
            n = float(known.weights.sum())
            z = largest_deviation(n, n - float(known.honest_weights.sum()))
        return known.mean - z * known.std
