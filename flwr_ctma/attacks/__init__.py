"""What Byzantine clients send: the attacks of the field, and the table of them.

A client alone mounts some of them, through `flwr_ctma.mods.ByzantineMod`: on its
update, its data, its claims or its messages. Colluders who see the honest updates mount
the others in a simulation, on the server: `flwr_ctma.strategy.AttackedStrategy`. These
can be called, `attack(honest, num_malicious, rng)`.

`ATTACKS` has every attack by its name in a run-config. An attack of your own enters
itself: `class Mine(Attack, name="mine")`.
"""

from flwr_ctma.attacks.adaptive import Adaptive
from flwr_ctma.attacks.alie import ALIE
from flwr_ctma.attacks.backdoor import (
    DBA,
    Backdoor,
    EdgeCase,
    SemanticFlip,
    TabularBackdoor,
    poison,
)
from flwr_ctma.attacks.base import (
    ATTACKS,
    Attack,
    Omniscient,
    iter_attacks,
    parse_attack,
)
from flwr_ctma.attacks.compose import Alternate, Both, During, Honest, Then
from flwr_ctma.attacks.constrained import Neurotoxin, Project
from flwr_ctma.attacks.evasion import FilterEvasion, TrimEvasion
from flwr_ctma.attacks.fang import Fang
from flwr_ctma.attacks.hiding import Camouflage, Frame, Jitter
from flwr_ctma.attacks.history import ROP, HybridSparse, PoisonedFL
from flwr_ctma.attacks.ipm import IPM
from flwr_ctma.attacks.knowledge import Knowledge
from flwr_ctma.attacks.labels import LabelFlip, flip_labels
from flwr_ctma.attacks.malformed import FAULTS, Malformed
from flwr_ctma.attacks.metrics import InflatedWeight, LyingMetrics
from flwr_ctma.attacks.mimic import Mimic
from flwr_ctma.attacks.minmax import MinMax, MinSum
from flwr_ctma.attacks.optimal import PGA, SCM, OptimalALIE, OptimalIPM
from flwr_ctma.attacks.replay import Replay
from flwr_ctma.attacks.shuffle import Shuffle
from flwr_ctma.attacks.update import (
    GaussianNoise,
    NonFinite,
    Scaling,
    SignFlip,
    Zero,
)
from flwr_ctma.attacks.variants import Blind, Drift, Mirror

__all__ = [
    "ALIE",
    "ATTACKS",
    "DBA",
    "FAULTS",
    "IPM",
    "PGA",
    "ROP",
    "SCM",
    "Adaptive",
    "Alternate",
    "Attack",
    "Backdoor",
    "Blind",
    "Both",
    "Camouflage",
    "Drift",
    "During",
    "EdgeCase",
    "Fang",
    "FilterEvasion",
    "Frame",
    "GaussianNoise",
    "Honest",
    "HybridSparse",
    "InflatedWeight",
    "Jitter",
    "Knowledge",
    "LabelFlip",
    "LyingMetrics",
    "Malformed",
    "Mimic",
    "MinMax",
    "MinSum",
    "Mirror",
    "Neurotoxin",
    "NonFinite",
    "Omniscient",
    "OptimalALIE",
    "OptimalIPM",
    "PoisonedFL",
    "Project",
    "Replay",
    "Scaling",
    "SemanticFlip",
    "Shuffle",
    "SignFlip",
    "TabularBackdoor",
    "Then",
    "TrimEvasion",
    "Zero",
    "flip_labels",
    "iter_attacks",
    "parse_attack",
    "poison",
]
