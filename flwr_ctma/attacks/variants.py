"""Attacks of colluders that modify another attack of colluders."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import numpy as np

from flwr_ctma.attacks.base import Omniscient, Rule, iter_attacks
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.errors import parameter_error

__all__ = ["Blind", "Drift", "Mirror", "Variant"]


@dataclass(frozen=True)
class Variant(Omniscient):
    """An attack of colluders in another form.

    Parameters
    ----------
    attack : Omniscient
        The attack that is modified.
    """

    attack: Omniscient

    def __post_init__(self) -> None:
        """Check that the attack is one of colluders."""
        if not isinstance(self.attack, Omniscient):
            raise parameter_error(
                "attack",
                "one that uses what the honest clients send",
                str(self.attack),
            )

    def against(self, rule: Rule, f: int | float) -> Self:
        """Aim the inner attack at a rule."""
        return replace(self, attack=cast(Omniscient, self.attack.against(rule, f)))


@dataclass(frozen=True)
class Blind(Variant, name="blind"):
    """Colluders who do not see the honest updates, only one another's.

    The inner attack gets the malicious clients' own honest updates in place of those of
    the honest clients: f rows that stand for h. ALIE was first proposed in this form,
    with mean and standard deviation from the attackers' own data, and z from n and f.

    Parameters
    ----------
    attack : Omniscient
        For example `ALIE` or `IPM`.

    Raises
    ------
    ValueError
        If the attack does not use what the honest clients send.

    Examples
    --------
    >>> from flwr_ctma.attacks import IPM
    >>> known = Knowledge(
    ...     honest=np.array([[1.0], [3.0], [5.0]]),
    ...     malicious=np.array([[2.0], [4.0]]),
    ...     rng=np.random.default_rng(0),
    ... )
    >>> Blind(IPM(epsilon=0.5)).collude(known)
    array([[-1.5],
           [-1.5]])
    """

    needs_malicious: ClassVar[bool] = True

    def craft(self, known: Knowledge) -> Rows:
        """Return what the attack makes of the attackers' own updates."""
        h, f = len(known.honest), known.f
        total, own = known.honest_weights.sum(), known.weights[h:]
        if not own.any():  # they count for nothing
            return known.malicious
        weights = np.concatenate([own * (total / own.sum()), own])
        stand_in = replace(known, honest=known.malicious, weights=weights)
        return self.attack.collude(stand_in)[:f]


@dataclass(frozen=True)
class Mirror(Variant, name="mirror"):
    """The same attack from the opposite side: 2μ − x for every x that it would send.

    μ is the mean of the honest updates. Which of μ − z·σ and μ + z·σ does more harm
    depends on the model, so an attacker tries both `alie` and `mirror(alie)`.

    Parameters
    ----------
    attack : Omniscient
        For example `ALIE` or `MinMax`.

    Raises
    ------
    ValueError
        If the attack uses more than what the honest clients send, or less.

    Examples
    --------
    >>> from flwr_ctma.attacks import ALIE
    >>> honest = np.array([[1.0], [2.0], [3.0]])
    >>> ALIE(z=1.5)(honest, num_malicious=1).round(3)
    array([[0.775]])
    >>> Mirror(ALIE(z=1.5))(honest, num_malicious=1).round(3)
    array([[3.225]])
    """

    def __post_init__(self) -> None:
        """Check that the attack depends on the honest updates alone."""
        super().__post_init__()
        inner = list(iter_attacks(self.attack))
        if any(attack.needs_malicious for attack in inner):
            remedy = "Write `blind(mirror(…))`."
        elif any(attack.needs_rule for attack in inner):
            remedy = "The best strength on one side is not the best on the other."
        else:
            return
        raise parameter_error(
            "attack",
            "one that makes its updates from those of the honest alone",
            str(self.attack),
            remedy,
        )

    def craft(self, known: Knowledge) -> Rows:
        """2μ − x."""
        return 2 * known.mean - self.attack.craft(known)


@dataclass(frozen=True)
class Drift(Variant, name="drift"):
    """The same attack, growing slowly from nothing: μ + a(x − μ) for every x it sends.

    a = min(1, (t − start + 1)/rounds) in round t, and 0 before `start`. No round
    differs much from the one before, which evades detectors of sudden changes.

    Parameters
    ----------
    attack : Omniscient
        For example `IPM`.
    rounds : int (default: 20)
        Number of rounds until the attack has its full strength. At least 1.
    start : int (default: 1)
        First round of the attack. Until then the colluders send μ.

    Raises
    ------
    ValueError
        If rounds is below 1, or the attack is not one of colluders.

    Notes
    -----
    The construction is this library's. It makes the "slow drift" of the literature on
    poisoning over time out of any attack of one round.

    Examples
    --------
    A quarter of the way from μ = 2 to −2 in the fifth of 20 rounds:

    >>> from flwr_ctma.attacks import IPM
    >>> known = Knowledge(
    ...     honest=np.array([[1.0], [3.0]]),
    ...     malicious=np.array([[2.0]]),
    ...     rng=np.random.default_rng(0),
    ...     server_round=5,
    ... )
    >>> Drift(IPM(epsilon=1.0)).collude(known)
    array([[1.]])
    """

    rounds: int = 20
    start: int = 1

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.rounds < 1:
            raise parameter_error("rounds", "at least 1", self.rounds)

    def craft(self, known: Knowledge) -> Rows:
        """μ + a(x − μ)."""
        passed = known.server_round - self.start + 1
        share = min(1.0, max(0.0, passed / self.rounds))
        rows: Rows = known.mean + share * (self.attack.collude(known) - known.mean)
        return rows
