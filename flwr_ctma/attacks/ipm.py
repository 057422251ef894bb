"""Inner product manipulation, also known as Fall of Empires (FOE)."""

from dataclasses import dataclass

from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows

__all__ = ["IPM"]


@dataclass(frozen=True)
class IPM(Omniscient, name="ipm"):
    """All colluders send −ε·μ, μ the mean of the honest updates.

    With a small ε they look like honest updates near zero, and still shrink or reverse
    the aggregate: the mean of n is (n − f − εf)/n · μ, an ascent for ε > (n − f)/f.

    Parameters
    ----------
    epsilon : float (default: 0.5)
        ε. The paper has 0.1 against Krum, and 0.5 and more against the median.

    References
    ----------
    Xie, Koyejo and Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner
    Product Manipulation", UAI 2019. `IPM(epsilon=1.0)` is ByzFL's sign flipping.

    Examples
    --------
    >>> import numpy as np
    >>> IPM(epsilon=0.5)(np.array([[1.0, 2.0], [3.0, -2.0]]), num_malicious=1)
    array([[-1., -0.]])
    """

    epsilon: float = 0.5

    def craft(self, known: Knowledge) -> Rows:
        """−ε·μ."""
        return -self.epsilon * known.mean
