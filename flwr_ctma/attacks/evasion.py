"""Attacks aimed at CTMA's trimming and at CAF's stopping rule."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.adaptive import Adaptive
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.attacks.search import Search

__all__ = ["FilterEvasion", "TrimEvasion"]


@dataclass(frozen=True)
class TrimEvasion(Adaptive, name="trimevasion"):
    r"""Against CTMA: take the place of the honest rows that pull the other way.

    CTMA averages the n − f rows nearest to an anchor. If it keeps f colluders at x, it
    trims f honest rows T, and its output is off the honest mean μ by

        A − μ = (f·(x − μ) − Σ_{i ∈ T} (x_i − μ)) / (n − f)

    The first term is the lie. The second is what trimming adds: honest clients that are
    left out. Both are parallel, and add up, if x − μ points against the trimmed rows,

        p = −Σ_{i ∈ T} (x_i − μ),    x = μ + γ·p

    and then T is trimmed indeed: a row of T is farther from x than other honest rows,
    and the anchor moves towards x. The colluders are kept as long as x is nearer to the
    anchor than all of T is, which bounds γ; the bound depends on the base rule, so γ is
    searched.

    With honest rows at equal distances s from μ and nearly orthogonal, as independent
    ones are in high dimension, ‖Σ_T (x_i − μ)‖ = √f·s: for ‖x − μ‖ = s the shift grows
    from √(f² + f)·s/(n − f), for a direction that knows nothing of T such as −μ or −σ,
    to (f + √f)·s/(n − f), by 37 % at f = 3 and 32 % at f = 5.

    As T the f rows with the largest component along μ, v_1 and −v_1 are tried, v_1 the
    first principal direction of the honest rows, and the f rows farthest from μ. From
    each, and from −μ and −σ, p ← A − μ follows `steps` times: by the first equation
    that is the lie plus the rows that CTMA really trimmed.

    Parameters
    ----------
    evaluations : int (default: 12)
        Number of calls of the rule on each line, twice as many on the best line.
    steps : int (default: 3)
        Number of lines from each starting direction. At least 1.
    objective : str (default: "distance")
        "distance" or "descent", as for `Adaptive`.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or the attack is not aimed at a rule.

    References
    ----------
    The attack is this library's. CTMA: Dahan and Levy, "Fault Tolerant ML: Efficient
    Meta-Aggregation and Synchronous Training", ICML 2024, Algorithm 1.

    Examples
    --------
    CTMA trims the row (3, 0) or (0, 3) that the lie is opposite to:

    >>> from flwr_ctma.aggregators import CTMA, CwMed
    >>> from flwr_ctma.attacks import ALIE, OptimalALIE
    >>> honest = np.array([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0], [1.0, 1.0]])
    >>> rule = CTMA(CwMed())
    >>> def shift(attack):
    ...     sent = attack.against(rule, f=1)(honest, num_malicious=1)
    ...     output = rule(np.vstack([honest, sent]), f=1)
    ...     return round(float(np.linalg.norm(output - honest.mean(axis=0))), 2)
    >>> shift(ALIE()), shift(OptimalALIE()), shift(TrimEvasion())
    (0.56, 1.39, 1.56)
    """

    def directions(self, search: Search) -> Iterator[Rows]:
        """Return −Σ_T (x_i − μ) for each T, then −μ and −σ."""
        known = search.known
        centred = known.honest - known.mean
        components = [centred @ known.mean, np.einsum("ij,ij->i", centred, centred)]
        components += [centred @ axis for axis in search.axes(1)]
        for component in components:
            yield self._against_largest(known, component)
        yield -known.mean
        yield -known.std

    @staticmethod
    def _against_largest(known: Knowledge, component: NDArray[np.floating]) -> Rows:
        """Return −Σ_T (x_i − μ), T with the largest components and the lie's weight."""
        order = np.argsort(component)[::-1]
        weights = known.honest_weights[order]
        before = np.cumsum(weights) - weights
        total = known.weights[len(known.honest) :].sum()
        trimmed = np.clip(total - before, 0, weights)
        direction: Rows = trimmed.sum() * known.mean - trimmed @ known.honest[order]
        return direction


@dataclass(frozen=True)
class FilterEvasion(Adaptive, name="filterevasion"):
    r"""Against CAF: lie along the honest spread, so that CAF filters the other side.

    Until its weights c sum to n − 2f, CAF takes the top principal direction v of the
    rows, and reduces c_i by the factor 1 − τ_i/max_j τ_j, with τ_i = ⟨v, x_i − m⟩² and
    the weighted mean m. It stops by the sum alone: it removes 2f rows' weight whether
    or not they are the colluders', and the more honest weight it has spent, the larger
    is the colluders' share p = f/Σc, up to f/(n − 2f).

    Let all colluders send x = μ + r·v, v the top principal direction of the honest
    rows. It stays the top direction, since the lie stretches it. The weighted mean is
    m = μ + p·r·v, so

        τ of the colluders         (1 − p)²·r²
        τ of an honest row at −b   (p·r + b)²,   b = ⟨v, μ − x_i⟩

    For b the largest such component on the side away from x, an honest row has the
    maximum, and the colluders keep some weight, as long as

        r < b/(1 − 2p)    (any r for p ≥ 1/2)

    Every honest row that is filtered raises p and so the bound, and m moves on. At 3, 5
    and 8 of 17, b/(1 − 2p) is 1.5·b, 2.4·b and 17·b in the first step. Any direction in
    which honest rows vary less, −μ or −σ in general, has a smaller b, and another
    direction can become the top one, in which colluders are not protected.

    The colluders' own factor 1 − ((1 − p)r/(pr + b))² makes a smaller r the best, which
    is searched, along ± the first three principal directions of the honest rows. From
    each, p ← A − μ follows `steps` times.

    Parameters
    ----------
    evaluations : int (default: 12)
        Number of calls of the rule on each line, twice as many on the best line.
    steps : int (default: 3)
        Number of lines from each starting direction. At least 1.
    objective : str (default: "distance")
        "distance" or "descent", as for `Adaptive`.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or the attack is not aimed at a rule.

    References
    ----------
    The attack is this library's. CAF: Allouah, Guerraoui and Stephan, "Towards
    Trustworthy Federated Learning with Untrusted Participants", ICML 2025, Algorithm 2.

    Examples
    --------
    >>> from flwr_ctma.aggregators import CAF
    >>> from flwr_ctma.attacks import ALIE, OptimalALIE
    >>> honest = np.random.default_rng(0).normal(size=(9, 100)) + 0.2
    >>> def shift(attack):
    ...     sent = attack.against(CAF(), f=8)(honest, num_malicious=8)
    ...     output = CAF()(np.vstack([honest, sent]), f=8)
    ...     return round(float(np.linalg.norm(output - honest.mean(axis=0))))
    >>> shift(ALIE()), shift(OptimalALIE()), shift(FilterEvasion())
    (2, 7, 15)
    """

    def directions(self, search: Search) -> Iterator[Rows]:
        """± the first three principal directions."""
        yield from search.axes(3)
        yield -search.known.mean  # where there is no spread
