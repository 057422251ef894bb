"""Colluders who see less than all, or go the other way."""

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Attack, Omniscient, Rows, Rule, parts
from flwr_ctma.attacks.moments import mean
from flwr_ctma.errors import parameter_error

__all__ = ["Blind", "Mirror"]


@dataclass(frozen=True)
class _Variant(Omniscient):
    """An attack of colluders, mounted otherwise."""

    attack: Omniscient

    def __post_init__(self) -> None:
        """Check that it is one of colluders."""
        if not isinstance(self.attack, Omniscient):
            raise parameter_error(
                "attack",
                "one that uses what the honest clients send",
                str(self.attack),
            )


@dataclass(frozen=True)
class Blind(_Variant):
    """Colluders who see only one another: what the honest send, they must guess.

    The wrapped attack gets the malicious clients' own honest updates in place of those
    of the honest clients, f rows that stand for h. This is how ALIE was first proposed:
    mean and standard deviation from the attackers' own data, z from n and f.

    Parameters
    ----------
    attack : Omniscient
        `ALIE` or `IPM`, say.

    Raises
    ------
    ValueError
        If the attack does not use what the honest clients send.

    Examples
    --------
    >>> from flwr_ctma.attacks import IPM
    >>> honest, own = np.array([[1.0], [3.0], [5.0]]), np.array([[2.0], [4.0]])
    >>> Blind(IPM(epsilon=0.5)).collude(honest, own, np.random.default_rng(0))
    array([[-1.5],
           [-1.5]])
    """

    needs_own: ClassVar[bool] = True

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """Forge from the rows that the attackers do see."""
        return self.attack.forge(honest, weights, rng)

    def collude(
        self,
        honest: Rows,
        own: Rows,
        rng: np.random.Generator,
        weights: NDArray[np.float64] | None = None,
    ) -> Rows:
        """Send what the attack makes of the attackers' own updates."""
        h, f = len(honest), len(own)
        every = np.ones(h + f) if weights is None else weights
        if not every[h:].any():  # there are none, or they count nothing
            return own
        stand_in = every[h:] * (every[:h].sum() / every[h:].sum())
        return self(own, f, rng, np.concatenate([stand_in, every[h:]]))

    def against(self, rule: Rule, f: int | float) -> Attack:
        """Let the wrapped attack know the rule."""
        return Blind(cast(Omniscient, self.attack.against(rule, f)))


@dataclass(frozen=True)
class Mirror(_Variant):
    """The same attack from the other side: 2μ − x for every x that it would send.

    μ is the mean of the honest updates. Which of μ − z·σ and μ + z·σ does more harm
    depends on the model, so an attacker tries `alie` and `mirror(alie)`.

    Parameters
    ----------
    attack : Omniscient
        `ALIE` or `MinMax`, say.

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
        """Check that what is sent depends on the honest updates, and on no more."""
        super().__post_init__()
        if any(part.needs_own for part in parts(self.attack)):
            remedy = "`blind(mirror(…))` is what it would be."
        elif any(part.needs_rule for part in parts(self.attack)):
            remedy = "What is farthest on one side need not be so on the other."
        else:
            return
        raise parameter_error(
            "attack",
            "one that makes its updates from those of the honest alone",
            str(self.attack),
            remedy,
        )

    def forge(
        self, honest: Rows, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> Rows:
        """2μ − x."""
        centre = mean(honest, weights[: len(honest)])
        return 2 * centre - self.attack.forge(honest, weights, rng)
