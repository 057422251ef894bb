"""How many nodes of a round may be malicious, and how many replies outvote them."""

import math
from dataclasses import dataclass

import numpy as np

from flwr_ctma.errors import parameter_error
from flwr_ctma.sampling import min_sample_size, tolerated

__all__ = ["Tolerance", "effective_f", "min_replies"]

# Faults in a round that may all be honest clients'.
_HONEST_FAULTS = 2


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


def min_replies(f: int, proven: int = 0, faulty: int = 0) -> int:
    """Return how many accepted replies outvote the liars that may be among them.

    This is 2 (f − m) + 1, where m of the rejected replies must be from the f malicious
    nodes:

    - A proof (`Rejection.proof`) is always from one of them.
    - A fault (`Rejection.fault`) may be an honest client's: two in a round lower
      nothing. Of more, two or half, whichever is more, are taken for honest.
    - With more than f proofs and faults some are honest clients', and m = 0: the cause
      is a general one, such as a model that diverges.

    Any other rejected reply lowers nothing, and neither does a missing one: they may be
    honest clients', while all f liars answered.

    Parameters
    ----------
    f : int
        Malicious nodes among those asked and those excluded.
    proven, faulty : int (default: 0)
        Rejected replies that are proofs, and that are faults.

    Examples
    --------
    >>> min_replies(8), min_replies(8, proven=3)
    (17, 11)
    >>> min_replies(8, faulty=1), min_replies(8, faulty=8), min_replies(8, 9)
    (17, 9, 17)
    >>> min_replies(8, faulty=2), min_replies(8, faulty=3)
    (17, 15)
    """
    if proven + faulty > f:
        return 2 * f + 1
    malicious = proven + max(faulty - max(_HONEST_FAULTS, faulty // 2), 0)
    return 2 * (f - malicious) + 1


def effective_f(f: int, good: int, proven: int, faulty: int = 0) -> int | None:
    """Return the largest f that the accepted replies support; None if too few came.

    f is not lowered to f − m where the replies support f: an honest client that breaks
    must not lower the guard against the liars.

    Examples
    --------
    >>> effective_f(2, good=11, proven=1), effective_f(8, good=16, proven=1)
    (2, 7)
    >>> print(effective_f(8, good=16, proven=0), effective_f(8, 16, 0, faulty=1))
    None None
    """
    enough = good >= min_replies(f, proven, faulty)
    return min(f, (good - 1) // 2) if enough else None
