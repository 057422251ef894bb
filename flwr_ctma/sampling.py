"""How many nodes to sample, and how many malicious ones a sample may hold.

Of n nodes b are malicious, and n̂ are sampled in each of T rounds, without replacement.
A rule that is told f̂ must not meet more than f̂ of them in any round:

    (1 − P[Hypergeometric(n, b, n̂) > f̂])^T ≥ p,    2 f̂ < n̂

Allouah et al., "Byzantine-Robust Federated Learning: Impact of Client Subsampling and
Local Updates", ICML 2024. The probabilities are exact.
"""

import math
from functools import lru_cache
from itertools import accumulate

from flwr_ctma.errors import parameter_error

__all__ = ["beyond", "min_sample_size", "tolerated"]


def tolerated(
    n: int, b: int, *, sampled: int, rounds: int = 1, confidence: float = 0.99
) -> int:
    """Smallest f̂ that no round's sample exceeds, with the given confidence.

    Parameters
    ----------
    n : int
        Nodes there are.
    b : int
        Malicious ones among them.
    sampled : int
        n̂, nodes sampled in a round.
    rounds : int (default: 1)
        T.
    confidence : float (default: 0.99)
        p, for all the rounds together.

    Returns
    -------
    int
        To be told to a rule as f. No rule holds if it is half of `sampled` or more.

    Raises
    ------
    ValueError
        Naming the parameter that makes no sense.

    Examples
    --------
    >>> tolerated(100, 10, sampled=11, rounds=100)
    5
    >>> tolerated(100, 10, sampled=100)
    10
    """
    _check(n, b, rounds, confidence)
    if not 1 <= sampled <= n:
        raise parameter_error("sampled", f"between 1 and n = {n}", sampled)
    return _tolerated(n, b, sampled, rounds, confidence)


def min_sample_size(
    n: int, b: int, *, rounds: int = 1, confidence: float = 0.99
) -> int:
    """Smallest n̂ whose samples have an honest majority in all rounds.

    An odd number: one more, which is even, needs one honest node more.

    Parameters
    ----------
    n, b, rounds, confidence
        See `tolerated`.

    Returns
    -------
    int
        At most n.

    Raises
    ------
    ValueError
        If half of the nodes or more are malicious, or a parameter makes no sense.

    Examples
    --------
    >>> min_sample_size(150, 30, rounds=500)
    29
    """
    _check(n, b, rounds, confidence)
    if 2 * b >= n:
        raise parameter_error(
            "b", f"smaller than n/2 = {n / 2:g}", b, "No rule holds against a majority."
        )
    return next(
        size
        for size in range(1, n + 1)
        if 2 * _tolerated(n, b, size, rounds, confidence) < size
    )


@lru_cache(maxsize=1024)
def beyond(n: int, b: int, sampled: int) -> tuple[float, ...]:
    """Probabilities that a sample holds more than k malicious nodes, k = 0, …, n̂.

    Parameters
    ----------
    n, b, sampled
        See `tolerated`.

    Examples
    --------
    >>> beyond(4, 2, 2)
    (0.8333333333333334, 0.16666666666666666, 0.0)
    """
    least, most = max(0, sampled - (n - b)), min(b, sampled)
    # Ways to draw k malicious nodes, for k = least, …, most; the division is exact.
    ways = [math.comb(b, least) * math.comb(n - b, sampled - least)]
    for k in range(least, most):
        more = ways[-1] * (b - k) * (sampled - k)
        ways.append(more // ((k + 1) * (n - b - sampled + k + 1)))
    total = math.comb(n, sampled)
    upto = [0] * least + list(accumulate(ways)) + [total] * (sampled - most)
    return tuple((total - few) / total for few in upto)


def _tolerated(n: int, b: int, sampled: int, rounds: int, confidence: float) -> int:
    return next(
        f
        for f, p in enumerate(beyond(n, b, sampled))
        if p < 1 and rounds * math.log1p(-p) >= math.log(confidence)
    )


def _check(n: int, b: int, rounds: int, confidence: float) -> None:
    if n < 1:
        raise parameter_error("n", "at least 1", n)
    if not 0 <= b <= n:
        raise parameter_error("b", f"between 0 and n = {n}", b)
    if rounds < 1:
        raise parameter_error("rounds", "at least 1", rounds)
    if not 0 < confidence < 1:
        raise parameter_error("confidence", "between 0 and 1, without them", confidence)
