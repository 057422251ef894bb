"""An update with honest statistics and no direction."""

from dataclasses import dataclass

from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows

__all__ = ["Shuffle"]


@dataclass(frozen=True)
class Shuffle(Omniscient, name="shuffle"):
    """All colluders send the mean of the honest updates with its coordinates shuffled.

    SignGuard recognises honest updates by their norm and by their shares of positive,
    negative and zero entries. Shuffling keeps these and makes the direction random.

    References
    ----------
    After Blades' attack on SignGuard (Li et al., IoTDI 2024), which draws magnitudes
    from U(0, 1), whatever the size of the updates.

    Examples
    --------
    >>> import numpy as np
    >>> honest = np.array([[1.0, 2.0, -3.0], [1.0, 2.0, -3.0]])
    >>> Shuffle()(honest, num_malicious=1, rng=np.random.default_rng(2))
    array([[-3.,  1.,  2.]])
    """

    def craft(self, known: Knowledge) -> Rows:
        """A permutation of μ."""
        return known.rng.permutation(known.mean)
