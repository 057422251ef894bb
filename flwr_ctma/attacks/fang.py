"""The attack on coordinate-wise rules of Fang et al."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.errors import parameter_error

__all__ = ["Fang"]


@dataclass(frozen=True)
class Fang(Omniscient, name="fang"):
    """In each coordinate, each colluder sends a value just beyond the honest range.

    Where the honest mean is positive, the value is below the honest minimum m: drawn
    from [m/b, m] if m > 0 and from [bm, m] otherwise. Where the mean is negative, it is
    above the honest maximum M: from [M, M/b] if M < 0 and from [M, bM] otherwise.

    Parameters
    ----------
    b : float (default: 2.0)
        Width of the range beyond. Larger than 1.

    Raises
    ------
    ValueError
        If b is not larger than 1.

    References
    ----------
    Fang, Cao, Jia and Gong, "Local Model Poisoning Attacks to Byzantine-Robust
    Federated Learning", USENIX Security 2020, §4.3, with full knowledge.
    Blades calls it the adaptive attack, and all its colluders send the same draw.

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

    def craft(self, known: Knowledge) -> Rows:
        """A draw for each colluder."""
        honest = known.honest
        positive = known.mean > 0
        edge = np.where(positive, honest.min(axis=0), honest.max(axis=0))
        # Away from the honest values: towards 0 only below a positive minimum.
        end = np.where(positive == (edge > 0), edge / self.b, edge * self.b)
        draws = known.rng.random((known.f, honest.shape[1])).astype(honest.dtype)
        rows: Rows = edge + draws * (end - edge)
        return rows
