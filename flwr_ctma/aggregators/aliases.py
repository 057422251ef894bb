"""Names that other libraries use for rules, and how far their definitions agree."""

from collections.abc import Mapping

__all__ = ["NEAREST", "SAME"]

SAME: Mapping[str, str] = {
    "average": "mean",
    "Average": "mean",
    "median": "cwmed",
    "Median": "cwmed",
    "FedMedian": "cwmed",
    "trmean": "cwtm",
    "TrMean": "cwtm",
    "Meamed": "meamed",
    "MDA": "mda",
    "MoNNA": "monna",
    "NNM": "nnm",
    "ARC": "arc",
    "Clipping": "clipping",
}
"""Names of ByzFL and Flower, to the rule here with the same definition."""

_KRUM = (
    "sums squared distances to n − f − 2 others, as the paper and Flower do, where "
    "ByzFL sums n − f − 1"
)
_MEDIAN = "converges, where ByzFL takes three smoothed steps from zero"
_CLIPPING = "gets its start as the reference, where ByzFL keeps the last output"

NEAREST: Mapping[str, tuple[str, str]] = {
    "Krum": ("krum", _KRUM),
    "multi_krum": ("multikrum", _KRUM),
    "MultiKrum": ("multikrum", _KRUM),
    "geometric_median": ("gm", _MEDIAN),
    "GeometricMedian": ("gm", _MEDIAN),
    "centered_clipping": ("cclip", _CLIPPING),
    "CenteredClipping": ("cclip", _CLIPPING),
    "CAF": (
        "caf",
        "computes the top eigenvector, where ByzFL takes one random power iteration",
    ),
    "SMEA": (
        "smea",
        "computes largest eigenvalues, where ByzFL takes one step of power iteration",
    ),
    "Bucketing": (
        "bucketing",
        "has a parameter `seed` and bounds `size`, where ByzFL's `s` has no bound",
    ),
    "FedTrimmedAvg": (
        "cwtm",
        "trims f values from each end, where Flower trims ⌊beta · n⌋",
    ),
    "Bulyan": (
        "bulyan",
        "needs n ≥ 4f + 3 rows, where Flower's skips a round that is too small",
    ),
    "FedAvg": ("mean", "has equal weights unless `weighted-by-key` is set"),
}
"""Other names, to the nearest rule here and its difference."""
