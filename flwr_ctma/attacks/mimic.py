"""Mimic: colluders repeat an honest update."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["Mimic"]


@dataclass(frozen=True)
class Mimic(Omniscient, name="mimic"):
    """All colluders copy one honest client.

    No rule can distinguish them from it. On heterogeneous data the copied client's
    examples count f + 1 times, and a rule that prefers a dense group of rows finds one.

    Parameters
    ----------
    client : int | None (default: None)
        Row of the honest client to copy, modulo the number of rows. If None, the row
        that is farthest out along the direction in which the honest updates vary most,
        argmax_i `|⟨v, x_i − μ⟩|` with their top principal component v.

    Raises
    ------
    ValueError
        If client is negative.

    Notes
    -----
    Karimireddy et al. learn v over the first rounds and then keep the client; here each
    round has its own v. ByzFL copies a client by number.

    `AttackedStrategy` orders rows by node id. In an `InProcessGrid` node ids follow
    partitions: with the first f of them malicious, `client=0` is partition f in every
    round in which all take part. Flower draws new node ids for every run, so there the
    copied client is the same within a run, but not in the next run.

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

    def craft(self, known: Knowledge) -> Rows:
        """One honest row."""
        client = self.client
        if client is None:
            client = _farthest_out(known.honest, known.honest_weights)
        copied: Rows = known.honest[client % len(known.honest)]
        return copied


def _farthest_out(honest: Rows, weights: NDArray[np.float64]) -> int:
    """Return the row with the largest projection on the first principal component.

    With X the rows less their mean and W their weights, v ∝ Xᵀ√W u for the top
    eigenvector u of √W X Xᵀ √W; so projections X v are proportional to u/√W.
    """
    shares = weights / weights.sum()
    centre = np.eye(len(shares)) - shares
    gram = centre @ Updates.of(honest).centred_gram() @ centre.T
    root = np.sqrt(shares)
    top = np.linalg.eigh(root[:, None] * gram * root)[1][:, -1]
    return int(np.argmax(np.abs(top) / root))
