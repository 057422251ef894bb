"""Rules that aggregate the updates of n clients, of which f may be Byzantine.

A rule is an immutable value that is called with updates and f; a meta-rule holds
another rule. `RULES` has every rule by the name that a run-config uses.

Examples
--------
>>> import numpy as np
>>> rule = parse_aggregator("ctma(gm)")
>>> rule
CTMA(base=GeometricMedian(tolerance=1e-06))
>>> rule(np.array([[1.0, 0.0], [1.2, 0.1], [0.8, -0.1], [50.0, 50.0]]), f=1)
array([1., 0.])
"""

from flwr_ctma.aggregators.aliases import NEAREST, SAME
from flwr_ctma.aggregators.arc import ARC
from flwr_ctma.aggregators.base import (
    RULES,
    Aggregate,
    Aggregator,
    Budget,
    MetaAggregator,
    iter_rules,
)
from flwr_ctma.aggregators.bucketing import Bucketing
from flwr_ctma.aggregators.bulyan import Bulyan
from flwr_ctma.aggregators.caf import CAF
from flwr_ctma.aggregators.cclip import CenteredClipping
from flwr_ctma.aggregators.cge import CGE
from flwr_ctma.aggregators.clipping import Clipping, NormBound
from flwr_ctma.aggregators.ctma import CTMA
from flwr_ctma.aggregators.cwmed import CwMed
from flwr_ctma.aggregators.cwtm import CwTM
from flwr_ctma.aggregators.distinct import Distinct
from flwr_ctma.aggregators.dnc import DnC
from flwr_ctma.aggregators.flame import FLAME
from flwr_ctma.aggregators.fltrust import FLTrust
from flwr_ctma.aggregators.foolsgold import FoolsGold
from flwr_ctma.aggregators.geometric_median import GeometricMedian
from flwr_ctma.aggregators.hierarchical import Hierarchical
from flwr_ctma.aggregators.huber import Huber
from flwr_ctma.aggregators.krum import Krum, MultiKrum
from flwr_ctma.aggregators.lasa import LASA
from flwr_ctma.aggregators.layerwise import Layerwise
from flwr_ctma.aggregators.mda import MDA
from flwr_ctma.aggregators.meamed import MeaMed
from flwr_ctma.aggregators.mean import Mean
from flwr_ctma.aggregators.medoid import Medoid
from flwr_ctma.aggregators.monna import MoNNA
from flwr_ctma.aggregators.nnm import NNM
from flwr_ctma.aggregators.sampled_dnc import SampledDnC
from flwr_ctma.aggregators.signguard import SignGuard
from flwr_ctma.aggregators.smea import SMEA
from flwr_ctma.aggregators.zeno import Zeno
from flwr_ctma.spec import parse

__all__ = [
    "ARC",
    "CAF",
    "CGE",
    "CTMA",
    "FLAME",
    "LASA",
    "MDA",
    "NNM",
    "RULES",
    "SMEA",
    "Aggregate",
    "Aggregator",
    "Bucketing",
    "Budget",
    "Bulyan",
    "CenteredClipping",
    "Clipping",
    "CwMed",
    "CwTM",
    "Distinct",
    "DnC",
    "FLTrust",
    "FoolsGold",
    "GeometricMedian",
    "Hierarchical",
    "Huber",
    "Krum",
    "Layerwise",
    "MeaMed",
    "Mean",
    "Medoid",
    "MetaAggregator",
    "MoNNA",
    "MultiKrum",
    "NormBound",
    "SampledDnC",
    "SignGuard",
    "Zeno",
    "iter_rules",
    "parse_aggregator",
]


def parse_aggregator(text: str) -> Aggregator:
    """Return the rule that a text spells.

    Parameters
    ----------
    text : str
        `name`, `name(base)` or `name(base, key=value)`: "ctma(nnm(cwmed))",
        "bucketing(gm, size=2)". ByzFL's and Flower's names are understood where their
        definition is the same: "NNM(TrMean)".

    Raises
    ------
    ValueError
        With the part that is wrong and what is allowed in its place.

    Examples
    --------
    >>> str(parse_aggregator("ctma(nnm(cwmed))"))
    'ctma(nnm(cwmed))'
    """
    rule: Aggregator = parse(text, RULES, "aggregator", SAME, NEAREST)
    return rule
