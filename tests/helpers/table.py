"""The table of rules: the oracle of each, and the laws that it obeys.

A new rule costs its file, its import in `flwr_ctma.aggregators`, and a row here with
its oracle, its golden row, and the laws that do not hold for it, with the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st

from flwr_ctma import parse_aggregator
from tests.helpers import oracles as o

GOLDEN = np.array(
    [
        [1.9, 2.1, -2.0],
        [2.3, 5.4, -0.4],
        [-1.2, -2.5, -1.2],
        [-1.5, 0.6, -1.7],
        [3.3, -0.7, -3.5],
        [-0.6, 3.6, -0.3],
        [1.0, -0.2, -2.7],
        [3.1, 4.7, -2.4],
        [3.0, 0.7, -0.8],
        [4.5, -1.0, 2.5],
        [9.0, -6.0, 5.0],
    ]
)
"""Eleven clients, the last two of them Byzantine: no ties, and rules differ on it."""

REFERENCE = np.array([1.0, 2.0, -1.0])
"""What rules start from or trust in the golden sample."""


@dataclass(frozen=True)
class Rule:
    """A line of the table.

    Parameters
    ----------
    spec : str
    oracle : callable
        Takes rows, f and the same keywords as the rule.
    golden : tuple of 3 floats
        The result on `GOLDEN` with f = 2.
    least : callable
        The smallest n for which the rule is defined with f.
    weighted, referenced : bool
        Whether it takes weights, and a reference.
    layered : bool
        Whether it depends on the layers into which the columns are cut.
    flat : bool
        Whether it has several answers for a few rows on a line, as a median has.
    exempt : mapping
        Laws that do not hold, with the reason.
    """

    spec: str
    oracle: Callable[..., np.ndarray]
    golden: tuple[float, float, float]
    least: Callable[[int], int] = lambda f: 2 * f + 1
    weighted: bool = False
    referenced: bool = False
    layered: bool = False
    flat: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)

    def __str__(self):
        return self.spec

    @cached_property
    def value(self):
        """The rule itself."""
        return parse_aggregator(self.spec)

    def __call__(self, x, f, **given):
        return self.value(x, f=f, **given)

    def aggregate(self, x, f, **given):
        return self.value.aggregate(x, f=f, **given)

    def given(self, reference):
        """The reference as a keyword, for a rule that takes one."""
        return {"reference": reference} if self.referenced else {}


def of_krum(f):
    return 2 * f + 3


def of_bulyan(f):
    return 4 * f + 3


def of_pairs(f):
    return 4 * f + 1


def of_thirds(f):
    return {0: 1, 1: 3, 2: 9}[f]


MEAN = {"mean": "a middle of the rows, not their mean"}
NORMS = {"translation": "norms are about zero, the model that was sent"}
INDEX = dict.fromkeys(
    ["permutation", "repetition"], "the trusted row is given by its index"
)
PLACES = {"permutation": "which rows share a bucket depends on their places"}
EQUALS = dict.fromkeys(
    ["oracle", "permutation"],
    "of subsets of the same diameter the first found is taken",
)
GROUPS = PLACES | {"mean": "groups of different size count the same"}
MUTUAL = {"permutation": "two rows that are each other's nearest tie for a last place"}
UNITS = {"scaling": "the radius is in the units of the rows"}
SCALED = {"average": "rows are scaled before they are averaged"}
LINEAR = {
    "majority": "every row moves it",
    "bounded": "one row moves it anywhere",
}
SHORT = {"majority": "short rows are kept, wherever they point"}
TRUST = {"majority": "the server's own update decides, not the number of rows"}
FEWER = {"bounded": "of few rows that are left the base tolerates fewer"}
UNLIKE = {
    "majority": "rows that are alike do not count",
    "bounded": "a row unlike all others counts most",
    "average": "no row counts if all are alike",
}
COPIES = {"bounded": "near copies that are honest are taken for colluders"}
AT_ONCE = dict.fromkeys(
    ["majority", "bounded"], "a lie far away hides a nearer one from the direction"
)
ALIKE = {"majority": "rows of honest signs and norms are kept"}
SIGNS = ALIKE | {
    "permutation": "of clusters of the same size the first is taken",
}
PULLS = {"majority": "every row pulls, though no farther than its limit"}

TABLE = [
    Rule("mean", o.mean, (2.254545, 0.609091, -0.681818), weighted=True, exempt=LINEAR),
    Rule("cwmed", o.cwmed, (2.3, 0.6, -1.2), weighted=True, exempt=MEAN),
    Rule("cwtm", o.cwtm, (2.0, 0.728571, -1.257143), weighted=True),
    Rule("meamed", o.meamed, (1.922222, 0.811111, -1.666667), weighted=True),
    Rule(
        "gm",
        o.gm,
        (1.920946, 1.090836, -1.347428),
        weighted=True,
        flat=True,
        exempt=MEAN,
    ),
    Rule("krum", o.krum, (1.9, 2.1, -2.0), of_krum, exempt=MEAN),
    Rule("multikrum", o.multikrum, (1.255556, 1.522222, -1.666667), of_krum),
    Rule(
        "multikrum(m=2)",
        partial(o.multikrum, m=2),
        (1.45, 0.95, -2.35),
        of_krum,
        exempt=MEAN,
    ),
    Rule("bulyan", o.bulyan, (0.766667, 0.366667, -1.633333), of_bulyan, exempt=MUTUAL),
    Rule("mda", o.mda, (1.888889, 1.688889, -1.255556), exempt=EQUALS),
    Rule("smea", o.smea, (1.5, 0.811111, -1.344444)),
    Rule(
        "monna", o.monna, (1.255556, 1.522222, -1.666667), weighted=True, exempt=INDEX
    ),
    Rule(
        "monna(pivot=2)",
        partial(o.monna, pivot=2),
        (1.5, 0.811111, -1.344444),
        weighted=True,
        exempt=INDEX,
    ),
    Rule("caf", o.caf, (1.565087, 1.219817, -1.299876), weighted=True),
    Rule("dnc", o.dnc, (1.888889, 1.688889, -1.255556)),
    Rule("sampleddnc", o.sampled_dnc, (1.255556, 1.522222, -1.666667), exempt=AT_ONCE),
    Rule(
        "sampleddnc(subset=2, iterations=3, seed=1)",
        partial(o.sampled_dnc, subset=2, iterations=3, seed=1),
        (1.6625, 0.55, -1.225),
        exempt=AT_ONCE,
    ),
    Rule(
        "cge",
        o.cge,
        (1.411111, 0.888889, -1.122222),
        weighted=True,
        exempt=NORMS | SHORT,
    ),
    Rule(
        "cclip",
        o.cclip,
        (2.095177, 0.768459, -0.801344),
        weighted=True,
        referenced=True,
        exempt=UNITS | SCALED | PULLS | MEAN,
    ),
    Rule(
        "cclip(radius=1.5, steps=3)",
        partial(o.cclip, radius=1.5, steps=3),
        (1.634912, 1.355638, -1.252256),
        weighted=True,
        referenced=True,
        exempt=UNITS | SCALED | PULLS | MEAN,
    ),
    Rule(
        "fltrust",
        o.fltrust,
        (0.986427, 1.370378, -0.97099),
        weighted=True,
        referenced=True,
        exempt=NORMS | SCALED | TRUST | MEAN,
    ),
    Rule(
        "ctma(gm)",
        partial(o.ctma, o.gm),
        (1.255556, 1.522222, -1.666667),
        weighted=True,
        flat=True,
    ),
    Rule(
        "ctma(cwmed)",
        partial(o.ctma, o.cwmed),
        (1.5, 0.811111, -1.344444),
        weighted=True,
    ),
    Rule(
        "ctma(cwtm)",
        partial(o.ctma, o.cwtm),
        (1.255556, 1.522222, -1.666667),
        weighted=True,
    ),
    Rule(
        "ctma(bulyan)",
        partial(o.ctma, o.bulyan),
        (1.255556, 1.522222, -1.666667),
        of_bulyan,
        exempt=MUTUAL,
    ),
    Rule(
        "ctma(fltrust)",
        partial(o.ctma, o.fltrust),
        (1.255556, 1.522222, -1.666667),
        weighted=True,
        referenced=True,
        exempt=NORMS | TRUST,
    ),
    Rule(
        "ctma(nnm(cwmed))",
        partial(o.ctma, partial(o.nnm, o.cwmed)),
        (1.255556, 1.522222, -1.666667),
        weighted=True,
    ),
    Rule(
        "nnm(ctma(cwmed))",
        partial(o.nnm, partial(o.ctma, o.cwmed)),
        (1.520988, 1.419753, -1.458025),
        weighted=True,
    ),
    Rule(
        "nnm(cwmed)", partial(o.nnm, o.cwmed), (1.5, 1.522222, -1.344444), weighted=True
    ),
    Rule(
        "nnm(gm)",
        partial(o.nnm, o.gm),
        (1.548462, 1.37353, -1.429245),
        weighted=True,
        flat=True,
    ),
    Rule(
        "nnm(ctma(gm))",
        partial(o.nnm, partial(o.ctma, o.gm)),
        (1.520988, 1.419753, -1.458025),
        weighted=True,
        flat=True,
    ),
    Rule(
        "bucketing(cwmed, size=2)",
        partial(o.bucketing, o.cwmed, size=2),
        (2.225, 0.475, -1.1),
        of_pairs,
        exempt=PLACES | MEAN,
    ),
    Rule(
        "bucketing(gm, seed=1)",
        partial(o.bucketing, o.gm, seed=1),
        (1.617317, 0.51046, -1.006986),
        flat=True,
        exempt=PLACES,
    ),
    Rule(
        "bucketing(nnm(cwtm), size=2)",
        partial(o.bucketing, partial(o.nnm, o.cwtm), size=2),
        (1.78125, 0.4625, -1.1375),
        of_pairs,
        exempt=PLACES | {"mean": "buckets of different size count the same"},
    ),
    Rule(
        "hierarchical(ctma(gm), size=3, seed=0)",
        partial(o.hierarchical, partial(o.ctma, o.gm)),
        (0.483333, 0.483333, -1.9),
        of_thirds,
        flat=True,
        exempt=GROUPS,
    ),
    Rule(
        "hierarchical(cwtm, ctma(cwmed), size=3, seed=1)",
        partial(o.hierarchical, o.cwtm, across=partial(o.ctma, o.cwmed), seed=1),
        (2.65, 1.425, -1.175),
        of_thirds,
        exempt=GROUPS,
    ),
    Rule(
        "ctma(hierarchical(nnm(cwmed), size=3, seed=0))",
        partial(o.ctma, partial(o.hierarchical, partial(o.nnm, o.cwmed))),
        (1.255556, 1.522222, -1.666667),
        of_thirds,
        exempt=PLACES,
    ),
    Rule(
        "arc(mean)",
        partial(o.arc, o.mean),
        (1.733356, 0.800004, -0.90114),
        weighted=True,
        exempt=NORMS | SCALED | PULLS,
    ),
    Rule(
        "arc(ctma(gm))",
        partial(o.arc, partial(o.ctma, o.gm)),
        (1.178476, 1.382274, -1.623654),
        weighted=True,
        flat=True,
        exempt=NORMS | SCALED,
    ),
    Rule(
        "clipping(cwmed, radius=3.0)",
        partial(o.clipping, o.cwmed, radius=3.0),
        (1.519494, 0.6, -1.176383),
        weighted=True,
        exempt=NORMS | UNITS | SCALED | PULLS | MEAN,
    ),
    Rule(
        "clipping(nnm(mean), radius=9.0)",
        partial(o.clipping, partial(o.nnm, o.mean), radius=9.0),
        (1.659543, 1.189261, -1.300478),
        weighted=True,
        exempt=NORMS | UNITS | SCALED | PULLS | MEAN,
    ),
    Rule(
        "normbound(mean)",
        partial(o.normbound, o.mean),
        (1.298233, 0.673083, -0.885389),
        weighted=True,
        exempt=NORMS | SCALED | PULLS | MEAN,
    ),
    Rule(
        "normbound(ctma(cwmed), quantile=0.8)",
        partial(o.normbound, partial(o.ctma, o.cwmed), quantile=0.8),
        (1.486638, 0.790853, -1.3341),
        weighted=True,
        exempt=NORMS | SCALED | MEAN,
    ),
    Rule(
        "medoid",
        o.medoid,
        (1.9, 2.1, -2.0),
        weighted=True,
        flat=True,
        exempt=MEAN,
    ),
    Rule(
        "distinct(cwmed)",
        partial(o.distinct, o.cwmed),
        (2.3, 0.6, -1.2),
        exempt=MEAN,
    ),
    Rule(
        "distinct(ctma(gm), nearer=0.1)",
        partial(o.distinct, partial(o.ctma, o.gm), nearer=0.1),
        (1.255556, 1.522222, -1.666667),
        flat=True,
        exempt=COPIES,
    ),
    Rule(
        "zeno(cwmed)",
        partial(o.zeno, o.cwmed),
        (2.3, 0.7, -1.7),
        referenced=True,
        exempt=NORMS | FEWER | TRUST | MEAN,
    ),
    Rule(
        "zeno(ctma(cwmed))",
        partial(o.zeno, partial(o.ctma, o.cwmed)),
        (1.457143, 1.542857, -1.914286),
        referenced=True,
        exempt=NORMS | TRUST,
    ),
    Rule(
        "huber",
        o.huber,
        (1.776163, 1.073456, -1.152408),
        weighted=True,
        flat=True,
        exempt=MEAN,
    ),
    Rule(
        "huber(radius=3.0)",
        partial(o.huber, radius=3.0),
        (1.762719, 1.029681, -1.237575),
        weighted=True,
        flat=True,
        exempt=UNITS | PULLS | MEAN,
    ),
    Rule(
        "foolsgold",
        o.foolsgold,
        (-0.979097, -0.809313, -1.394578),
        exempt=NORMS | UNLIKE | MEAN,
    ),
    Rule(
        "signguard",
        o.signguard,
        (2.265768, 1.655015, -0.547834),
        exempt=NORMS | SCALED | SIGNS | MEAN,
    ),
    Rule(
        "lasa",
        o.lasa,
        (2.218917, 1.146249, -0.080528),
        layered=True,
        exempt=NORMS | SCALED | ALIKE | MEAN,
    ),
    Rule(
        "lasa(sparsity=0.5, lambda-n=2.0, lambda-s=0.8)",
        partial(o.lasa, sparsity=0.5, lambda_n=2.0, lambda_s=0.8),
        (1.441954, 0.642695, -1.356106),
        layered=True,
        exempt=NORMS | SCALED | ALIKE | MEAN,
    ),
    Rule(
        "layerwise(krum)", o.krum, (1.9, 2.1, -2.0), of_krum, layered=True, exempt=MEAN
    ),
    Rule(
        "layerwise(ctma(cwmed))",
        partial(o.ctma, o.cwmed),
        (1.5, 0.811111, -1.344444),
        weighted=True,
        layered=True,
    ),
    Rule(
        "flame",
        o.flame,
        (1.581774, 1.692294, -1.44594),
        flat=True,
        exempt=NORMS | SCALED | MEAN,
    ),
]

LAWS = {
    "oracle": "the result is the oracle's",
    "permutation": "the order of the rows does not matter",
    "translation": "rows moved by a vector move the result by it",
    "scaling": "rows scaled by a factor scale the result by it",
    "average": "the result is an average of the rows, and within their hull",
    "majority": "n − f identical rows are the result, whatever the others are",
    "bounded": "f rows far away move the result by as much as honest rows differ",
    "mean": "with f = 0 the result is the mean",
    "repetition": "a row of integer weight is as many rows",
}

few = settings(max_examples=12, deadline=None, derandomize=True)


def obeying(law):
    """The rules that obey a law, as parameters of a test."""
    return [pytest.param(r, id=r.spec) for r in TABLE if law not in r.exempt]


def everyone(predicate=lambda rule: True):
    """Rules of the table, as parameters of a test."""
    return [pytest.param(r, id=r.spec) for r in TABLE if predicate(r)]


def distinct_mixtures(x, f):
    """Return how many mixed rows differ: p, p, q, q have many medians."""
    weights = np.ones(len(x))
    return len({tuple(o.kept(row, f, weights).round(9)) for row in o.distances(x)})


@st.composite
def samples(draw, rule, most_lies=2):
    """Rows, f and a reference: honest rows around a point, and f that lie somehow."""
    f = draw(st.integers(0, most_lies))
    n = max(4, rule.least(f)) + draw(st.integers(0, 3))
    d = draw(st.integers(2 if rule.flat else 1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centre = rng.standard_normal(d) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    x = centre + rng.standard_normal((n, d))
    lie = draw(st.sampled_from(["none", "far", "copy", "opposite", "shift"]))
    where = rng.permutation(n)[:f]
    if lie == "far":
        x[where] = centre + 100 * rng.standard_normal((f, d))
    elif lie == "copy":
        x[where] = x[np.setdiff1d(np.arange(n), where)[0]]
    elif lie == "opposite":
        x[where] = -x[where]
    elif lie == "shift":
        x[where] = x.mean(axis=0) - 1.2 * x.std(axis=0)
    if "bulyan" in rule.spec:
        # Which of three equal rows is left over, rounding decides; and its place, who
        # wins when it and another row are each other's nearest.
        assume(lie != "copy" or f < 2)
    if "nnm" in rule.spec:
        assume(f == 0 or distinct_mixtures(x, f) > n / 2)
    return x, f, centre + 0.5 * rng.standard_normal(d)
