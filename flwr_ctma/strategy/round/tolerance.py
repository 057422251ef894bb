"""How many nodes of a round may be malicious, and how many replies outvote them."""

import math
from dataclasses import dataclass

import numpy as np

from flwr_ctma.errors import parameter_error
from flwr_ctma.sampling import min_sample_size, tolerated

__all__ = ["Tolerance", "effective_f", "min_replies"]


@dataclass(frozen=True)
class Tolerance:
    """The number of malicious nodes, in the system and in a sample of it.

    Parameters
    ----------
    num_malicious_nodes : int | float
        A count, or a share in [0, 0.5) of the connected nodes. NumPy's numbers become
        Python's.
    rounds : int (default: 100)
        Rounds in which samples are drawn.
    confidence : float (default: 0.99)
        Probability that no sample of any round holds more than f.

    Raises
    ------
    ValueError
        If num_malicious_nodes is neither a count nor a share.

    Examples
    --------
    >>> Tolerance(30).among(150, connected=150), Tolerance(30).among(31, connected=150)
    (30, 14)
    """

    num_malicious_nodes: int | float
    rounds: int = 100
    confidence: float = 0.99

    def __post_init__(self) -> None:
        given = self.num_malicious_nodes
        number = given.item() if isinstance(given, np.number) else given
        count = isinstance(number, int) and not isinstance(number, bool) and number >= 0
        if not count and not (isinstance(number, float) and 0 <= number < 0.5):
            raise parameter_error(
                "num_malicious_nodes",
                "a count, or a share in [0, 0.5) of the nodes",
                given,
                "No rule holds against a majority.",
            )
        object.__setattr__(self, "num_malicious_nodes", number)

    def of(self, connected: int) -> int:
        """Return b, the count in the system.

        A share is rounded up, but leaves the honest nodes a majority.
        """
        number = self.num_malicious_nodes
        if isinstance(number, int):
            return number
        return min(math.ceil(number * connected - 1e-9), max(connected - 1, 0) // 2)

    def among(self, asked: int, connected: int) -> int:
        """Return f, the most that a sample of this size may hold, below half of it."""
        b = self.of(connected)
        if 2 * b >= connected or asked >= connected:
            return b
        return min(self._tolerated(asked, connected), (asked - 1) // 2)

    def too_small(self, asked: int, connected: int) -> int | None:
        """Return the sample size to use, if samples of this size may hold a majority.

        Return None if the size is large enough.
        """
        b = self.of(connected)
        if 2 * b >= connected or 2 * self._tolerated(asked, connected) < asked:
            return None
        return min_sample_size(
            connected, b, rounds=self.rounds, confidence=self.confidence
        )

    def _tolerated(self, asked: int, connected: int) -> int:
        return tolerated(
            connected,
            self.of(connected),
            sampled=min(asked, connected),
            rounds=self.rounds,
            confidence=self.confidence,
        )


def min_replies(f: int, rejected: int = 0) -> int:
    """Return how many accepted replies outvote the liars among them: 2 (f − r) + 1.

    A rejected reply proves that its sender is one of the f. A missing reply proves
    nothing: its sender may be honest while f liars answered.

    Examples
    --------
    >>> min_replies(8), min_replies(8, rejected=3)
    (17, 11)
    """
    return 2 * max(f - rejected, 0) + 1


def effective_f(f: int, accepted: int, rejected: int) -> int | None:
    """Return the largest f that the accepted replies support, or None if too few.

    It stays f, not f − r, where the replies support f: an honest client that breaks
    must not lower the guard against the liars.

    Examples
    --------
    >>> effective_f(2, accepted=11, rejected=1), effective_f(8, accepted=16, rejected=1)
    (2, 7)
    >>> print(effective_f(8, accepted=16, rejected=0))
    None
    """
    if accepted < min_replies(f, rejected):
        return None
    return min(f, (accepted - 1) // 2)
