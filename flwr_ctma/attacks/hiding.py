"""Colluders that hide: unlike one another, unsuspected, behind an honest client."""

from dataclasses import dataclass

import numpy as np

from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.attacks.variants import Variant
from flwr_ctma.errors import parameter_error

__all__ = ["Camouflage", "Frame", "Jitter"]


@dataclass(frozen=True)
class Jitter(Variant, name="jitter"):
    """The same attack with noise of each colluder's own: x + a·σ⊙ε.

    Identical updates give colluders away. ε ~ N(0, I) is drawn for each colluder, σ is
    the standard deviation of the honest updates, coordinate by coordinate.

    Parameters
    ----------
    attack : Omniscient
        For example `ALIE`.
    scale : float (default: 0.3)
        a, the noise in units of the honest spread. At least 0; 1 makes colluders as
        different from one another as honest clients are.

    Raises
    ------
    ValueError
        If scale is negative, or the attack is not one of colluders.

    References
    ----------
    Such noise hides colluders from FoolsGold: Fung, Yoon and Beschastnikh, "The
    Limitations of Federated Learning in Sybil Settings", RAID 2020, §7.

    Examples
    --------
    Both differ from −μ/2 = −1, by 0.3·σ = 0.3 times a normal draw:

    >>> from flwr_ctma.attacks import IPM
    >>> honest = np.array([[1.0], [3.0]])
    >>> Jitter(IPM(epsilon=0.5))(honest, num_malicious=2).round(2)
    array([[-0.66],
           [-1.42]])
    """

    scale: float = 0.3

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.scale >= 0:
            raise parameter_error("scale", "0 or more", self.scale)

    def craft(self, known: Knowledge) -> Rows:
        """Add the noise a·σ⊙ε."""
        rows = self.attack.collude(known)
        noise = known.rng.standard_normal(rows.shape, np.float32).astype(rows.dtype)
        jittered: Rows = rows + self.scale * known.std * noise
        return jittered


@dataclass(frozen=True)
class Camouflage(Variant, name="camouflage"):
    """The same attack, as far from the aggregate as honest clients are.

    With the direction e = (y − μ)/‖y − μ‖ of the inner attack's update y, the colluders
    expect the aggregate at

        c = μ + (f/h)·b·r̄·e,    r̄ the mean of the honest distances ‖x_i − μ‖

    which is the mean of all updates if each colluder leans by b·r̄ beyond it. Each draws
    the distance r = ‖x_i − c‖ of an honest client and sends

        c + b·r·e + √((1 − b²)/(1 − 2/n))·r·w

    with a unit vector w orthogonal to e, of random direction σ⊙ε. (1 − 2/n corrects for
    the colluder's own noise in the mean of n rows.) The distance of a colluder to the
    mean of all rows then has the distribution of an honest client's: colluders are
    neither far outside nor near and identical.

    Parameters
    ----------
    attack : Omniscient
        For example `IPM` or `OptimalIPM`.
    lean : float (default: 0.3)
        b, the share of the distance along the attack. In (0, 1].

    Raises
    ------
    ValueError
        If lean is not in (0, 1], or the attack is not one of colluders.

    Notes
    -----
    The construction is this library's. It is aimed at the ledger of `RobustStrategy`,
    whose suspicion follows from ranks of distances to the aggregate. A rule that trims
    does not end exactly at c, so ranks still order colluders first in the long run, but
    much more slowly than with the plain attack.

    Examples
    --------
    Distances to the mean of all rows, relative to those of the honest:

    >>> from flwr_ctma.attacks import IPM
    >>> honest = np.random.default_rng(0).normal(size=(12, 10_000)) + 1
    >>> sent = Camouflage(IPM(epsilon=9.0))(honest, num_malicious=5)
    >>> rows = np.vstack([sent, honest])
    >>> distances = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
    >>> round(float(distances[:5].mean() / distances[5:].mean()), 2)
    1.0
    """

    lean: float = 0.3

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not 0 < self.lean <= 1:
            raise parameter_error("lean", "in (0, 1]", self.lean)

    def craft(self, known: Knowledge) -> Rows:
        """Return c + b·r·e + √((1 − b²)/(1 − 2/n))·r·w for each colluder."""
        honest = known.honest.astype(np.float64)
        aimed = self.attack.collude(known).astype(np.float64) - known.mean
        norms = np.linalg.norm(aimed, axis=1, keepdims=True)
        e = aimed / np.where(norms > 0, norms, 1)
        mean_distance = known.shares @ np.linalg.norm(honest - known.mean, axis=1)
        odds = known.weights[len(honest) :].sum() / known.honest_weights.sum()
        centre = known.mean + odds * self.lean * mean_distance * e.mean(axis=0)
        distances = np.linalg.norm(honest - centre, axis=1)
        order = np.argsort(distances)
        drawn = known.rng.random(known.f)
        places = np.searchsorted(np.cumsum(known.shares[order])[:-1], drawn)
        r = distances[order][places][:, None]
        w = known.std * known.rng.standard_normal(e.shape)
        w -= e * np.sum(w * e, axis=1, keepdims=True)
        sizes = np.linalg.norm(w, axis=1, keepdims=True)
        w /= np.where(sizes > 0, sizes, 1)
        n = max(3, len(known.weights))
        across = np.sqrt((1 - self.lean**2) / (1 - 2 / n))
        rows: Rows = centre + r * (self.lean * e + across * w)
        return rows


@dataclass(frozen=True)
class Frame(Omniscient, name="frame"):
    """Colluders look like anyone, but lean away from one honest client.

    With the direction a = (x_c − μ)/‖x_c − μ‖ of the framed client c and noise z = σ⊙ε,
    ε ~ N(0, I), drawn for each colluder, they send

        μ + √(1 − b²)·(z − ⟨z, a⟩a) − b·‖σ‖·a

    which is about ‖σ‖ away from μ, as honest updates are. The aggregate moves away from
    c, and c alone becomes an outlier, round after round.

    Parameters
    ----------
    client : int (default: 0)
        c, the row of the framed client among the honest, modulo their number; see
        `Mimic` for which client that is.
    lean : float (default: 0.45)
        b, the share of the distance that leans away. In [0, 1].

    Raises
    ------
    ValueError
        If client is negative, or lean is not in [0, 1].

    Notes
    -----
    The attack is this library's: a test of every reputation that excludes clients.

    Examples
    --------
    The framed client is at +2 of the mean in the first coordinate:

    >>> honest = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> sent = Frame(client=0, lean=1.0)(honest, num_malicious=1)
    >>> bool(sent[0, 0] < 0), abs(round(float(sent[0, 1]), 12))
    (True, 0.0)
    """

    client: int = 0
    lean: float = 0.45

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.client < 0:
            raise parameter_error("client", "0 or more", self.client)
        if not 0 <= self.lean <= 1:
            raise parameter_error("lean", "in [0, 1]", self.lean)

    def craft(self, known: Knowledge) -> Rows:
        """μ + √(1 − b²)·(z − ⟨z, a⟩a) − b·‖σ‖·a."""
        honest = known.honest
        away = honest[self.client % len(honest)].astype(np.float64) - known.mean
        length = float(np.linalg.norm(away))
        away = away / length if length else away
        noise = known.std * known.rng.standard_normal((known.f, honest.shape[1]))
        across = noise - np.outer(noise @ away, away)
        rows: Rows = (
            known.mean
            + np.sqrt(1 - self.lean**2) * across
            - self.lean * known.spread * away
        )
        return rows
