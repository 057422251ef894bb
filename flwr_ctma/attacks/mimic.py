"""Mimic: nothing but honest updates, one of them too often."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Omniscient, Rows
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Mimic"]


@dataclass(frozen=True)
class Mimic(Omniscient):
    """All colluders copy one honest client.

    No rule can tell them from it. On heterogeneous data the copied client's examples
    count f + 1 times, and a rule that prefers a dense group of rows finds one here.

    Parameters
    ----------
    client : int | None (default: None)
        Row of the honest client to copy, a remainder if there are fewer rows. If None,
        the one that is farthest out along the direction in which the honest updates
        vary most, argmax_i |⟨v, x_i − μ⟩|, v their top principal component.

    Raises
    ------
    ValueError
        If client is negative.

    Notes
    -----
    Karimireddy et al. learn v over the first rounds and then keep the client; here it
    is found anew in every round, without memory. ByzFL copies a client by number.

    `AttackedStrategy` puts rows in the order of node ids. In an `InProcessGrid` these
    are in the order of partitions, so with f of them malicious `client=0` is partition
    f, in every round in which all are asked. Flower draws node ids anew for every run:
    there it is one and the same client for a run, but not the same in the next.

    References
    ----------
    Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", ICLR 2022, §3.2 and Appendix B.

    Examples
    --------
    >>> honest = np.array([[0.0, 1.0], [1.0, 0.0], [9.0, 0.0]])
    >>> Mimic()(honest, num_malicious=2)
    array([[9., 0.],
           [9., 0.]])
    >>> Mimic(client=0)(honest, num_malicious=1)
    array([[0., 1.]])
    """

    client: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.client is not None and self.client < 0:
            raise parameter_error("client", "0 or more", self.client)

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """One honest row."""
        client = self.client
        if client is None:
            client = _farthest_out(honest, weights[: len(honest)])
        copied: Rows = honest[client % len(honest)]
        return copied


def _farthest_out(honest: Rows, weights: NDArray[np.float64]) -> int:
    """Row of the largest projection on the first principal component.

    With X the rows less their mean and W their weights, v ∝ Xᵀ√W u for the top
    eigenvector u of √W X Xᵀ √W; so projections X v are proportional to u/√W.
    """
    shares = weights / weights.sum()
    centre = np.eye(len(shares)) - shares
    gram = centre @ Updates.of(honest).centred_gram() @ centre.T
    root = np.sqrt(shares)
    top = np.linalg.eigh(root[:, None] * gram * root)[1][:, -1]
    return int(np.argmax(np.abs(top) / root))
