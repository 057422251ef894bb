"""The same rules in other libraries, as far as these are installed.

Each function returns a dict from (rule, library) to a function of the rows. ByzFL and
ByzPy need the torchvision that matches torch. krum needs Python 3.12.
"""

from importlib import import_module

import numpy as np

__all__ = ["peers"]


def naive(f):
    """Return the median and the trimmed mean in plain NumPy and torch."""
    import torch

    def cut(x):
        return x[f : len(x) - f]

    def torch_cwtm(x):
        return cut(torch.from_numpy(x).sort(dim=0).values).mean(dim=0)

    return {
        ("cwmed", "NumPy"): lambda x: np.median(x, axis=0),
        ("cwtm", "NumPy"): lambda x: cut(np.sort(x, axis=0)).mean(axis=0),
        ("cwmed", "torch"): lambda x: torch.from_numpy(x).median(dim=0).values,
        ("cwtm", "torch"): torch_cwtm,
    }


def byzfl(f):
    """Return the rules of ByzFL, on NumPy arrays and on tensors."""
    lib, torch = import_module("byzfl"), import_module("torch")

    def both(rule, before=lambda x: x):
        return (
            lambda x: rule(before(x)),
            lambda x: rule(before(torch.from_numpy(x))),
        )

    rules = {
        "cwmed": both(lib.Median()),
        "cwtm": both(lib.TrMean(f=f)),
        "meamed": both(lib.Meamed(f=f)),
        "gm": both(lib.GeometricMedian()),
        "krum": both(lib.Krum(f=f)),
        "multikrum": both(lib.MultiKrum(f=f)),
        "monna": both(lib.MoNNA(f=f)),
        "caf": both(lib.CAF(f=f)),
        "cclip": both(lambda x: lib.CenteredClipping(tau=10.0)(x)),
        "nnm(gm)": both(lib.GeometricMedian(), lib.NNM(f=f)),
        "nnm(cwmed)": both(lib.Median(), lib.NNM(f=f)),
    }
    found = {}
    for spec, (numpy_call, torch_call) in rules.items():
        found[spec, "ByzFL (NumPy)"] = numpy_call
        found[spec, "ByzFL (torch)"] = torch_call
    return found


def byzpy(f):
    """Return the rules of ByzPy."""
    coordinate = "byzpy.aggregators.coordinate_wise"
    geometric = "byzpy.aggregators.geometric_wise"

    torch = import_module("torch")

    def get(module, name, **given):
        return getattr(import_module(module), name)(**given)

    def each(x):
        return list(torch.from_numpy(x))

    mixing = get("byzpy.pre_aggregators", "NearestNeighborMixing", f=f)
    gm = get(f"{geometric}.geometric_median", "GeometricMedian")
    rules = {
        "cwmed": get(f"{coordinate}.median", "CoordinateWiseMedian"),
        "cwtm": get(f"{coordinate}.trimmed_mean", "CoordinateWiseTrimmedMean", f=f),
        "gm": gm,
        "krum": get(f"{geometric}.krum", "Krum", f=f),
    }
    found = {
        (spec, "ByzPy"): lambda x, rule=rule: rule.aggregate(each(x))
        for spec, rule in rules.items()
    }
    found["nnm(gm)", "ByzPy"] = lambda x: gm.aggregate(mixing.pre_aggregate(each(x)))
    return found


def krum(f):
    """Return the rules of the krum library."""
    torch = import_module("torch")

    def call(module, name, **given):
        rule = getattr(import_module(f"krum.primitives.aggregators.{module}"), name)
        return lambda x: rule.aggregate(
            torch.from_numpy(x), **{k: v(x) for k, v in given.items()}
        )

    counts = {"n": len, "f": lambda x: f}
    return {
        ("cwmed", "krum"): call("median", "Median"),
        ("cwtm", "krum"): call("trimmed_mean", "TrimmedMean", f=lambda x: f),
        ("gm", "krum"): call("geometric_median", "GeometricMedian", **counts),
        ("krum", "krum"): call("krum", "Krum", **counts),
        ("multikrum", "krum"): call(
            "multikrum", "MultiKrum", **counts, m=lambda x: len(x) - f
        ),
    }


def peers(f, report=print):
    """Return the rules of all installed libraries, and report the others."""
    found = {}
    for library in (naive, byzfl, byzpy, krum):
        try:
            found |= library(f)
        except Exception as error:  # a mismatched library may raise anything
            report(f"{library.__name__} is left out: {error}")
    return found
