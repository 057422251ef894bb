"""What Byzantine clients send: every attack of the field, and the table of them.

Inside a client, through `flwr_ctma.mods.ByzantineMod`: sign flip, noise, zero, scaling,
non-finite values, replay, label flip, backdoor, lies about weight and metrics, broken
messages. Omniscient, in `flwr_ctma.strategy.AttackedStrategy`: those that are called as
`attack(honest, num_malicious, rng)`.

Where other libraries have them (h is the number of honest clients):

    ByzFL   SignFlipping                    ipm(epsilon=1)
            InnerProductManipulation(τ)     ipm(epsilon=τ)
            ALittleIsEnough(τ)              alie(z=-τ), σ times √(h/(h - 1))
            Optimal_…                       optimalipm, optimalalie, other line search
            Mimic(i)                        mimic(client=i)
            Inf, Gaussian, LabelFlipping    nonfinite(value=inf), noise, labelflip
    Blades  SignFlip, LabelFlip, Noise      signflip, labelflip, noise
            IPM, ALIE, MinMax               ipm, mirror(alie), minmax
            Adaptive, SignGuard             fang, shuffle

Blades' attack on ClippedClustering has no place here without that rule.
"""

from flwr_ctma.attacks.alie import ALIE
from flwr_ctma.attacks.backdoor import Backdoor, poison
from flwr_ctma.attacks.base import Attack, Omniscient
from flwr_ctma.attacks.compose import Both, During, Honest, Then
from flwr_ctma.attacks.fang import Fang
from flwr_ctma.attacks.ipm import IPM
from flwr_ctma.attacks.labels import LabelFlip, flip_labels
from flwr_ctma.attacks.malformed import FAULTS, Malformed
from flwr_ctma.attacks.metrics import InflatedWeight, LyingMetrics
from flwr_ctma.attacks.mimic import Mimic
from flwr_ctma.attacks.minmax import MinMax, MinSum
from flwr_ctma.attacks.optimal import OptimalALIE, OptimalIPM
from flwr_ctma.attacks.shuffle import Shuffle
from flwr_ctma.attacks.stale import Replay
from flwr_ctma.attacks.update import (
    GaussianNoise,
    NonFinite,
    Scaling,
    SignFlip,
    Zero,
)
from flwr_ctma.attacks.variants import Blind, Mirror
from flwr_ctma.spec import parse

__all__ = [
    "ALIE",
    "ATTACKS",
    "FAULTS",
    "IPM",
    "Attack",
    "Backdoor",
    "Blind",
    "Both",
    "During",
    "Fang",
    "GaussianNoise",
    "Honest",
    "InflatedWeight",
    "LabelFlip",
    "LyingMetrics",
    "Malformed",
    "Mimic",
    "MinMax",
    "MinSum",
    "Mirror",
    "NonFinite",
    "Omniscient",
    "OptimalALIE",
    "OptimalIPM",
    "Replay",
    "Scaling",
    "Shuffle",
    "SignFlip",
    "Then",
    "Zero",
    "flip_labels",
    "parse_attack",
    "poison",
]

ATTACKS: dict[str, type[Attack]] = {
    "signflip": SignFlip,
    "labelflip": LabelFlip,
    "noise": GaussianNoise,
    "zero": Zero,
    "scaling": Scaling,
    "nonfinite": NonFinite,
    "stale": Replay,
    "inflatedweight": InflatedWeight,
    "lyingmetrics": LyingMetrics,
    "backdoor": Backdoor,
    "malformed": Malformed,
    "ipm": IPM,
    "alie": ALIE,
    "optimalipm": OptimalIPM,
    "optimalalie": OptimalALIE,
    "mimic": Mimic,
    "minmax": MinMax,
    "minsum": MinSum,
    "fang": Fang,
    "shuffle": Shuffle,
    "blind": Blind,
    "mirror": Mirror,
    "none": Honest,
    "both": Both,
    "during": During,
    "then": Then,
}
"""Every attack, by its name in a run-config."""


def parse_attack(text: str | Attack) -> Attack:
    """Build the attack that a text spells.

    Parameters
    ----------
    text : str | Attack
        A name from `ATTACKS`, with its parameters and the attacks it holds; an attack
        stays what it is.

    Raises
    ------
    ValueError
        For anything but a well-formed spelling; the sentence says what is allowed.

    Examples
    --------
    >>> parse_attack("malformed(fault=wrong-shape)")
    Malformed(fault='wrong-shape')
    >>> str(parse_attack("during(both(signflip, inflatedweight), start=5)"))
    'during(both(signflip, inflatedweight), start=5)'
    """
    if isinstance(text, Attack):
        return text
    attack: Attack = parse(text, ATTACKS, "attack")
    return attack
