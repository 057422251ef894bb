"""Data that scikit-learn has on board, read from its files: no download.

A run needs the numbers alone. To import scikit-learn for them, and `datasets` to split
them, would take longer than to train for some rounds.
"""

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.examples import Examples

__all__ = ["BUNDLED", "split"]

_TEST_SHARE = 0.2


def _digits() -> Examples:
    """Return the handwritten digits, of 8 × 8 pixels."""
    table = np.loadtxt(_folder() / "data" / "digits.csv.gz", delimiter=",")
    pixels = np.round(table[:, :-1] * (255 / 16)).astype(np.float32)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8) / 127.5 - 1
    return Examples(images, _class_numbers(table), 10)


def _breast_cancer() -> Examples:
    """Return the table of tumours: 30 features, malignant or benign.

    Features are scaled to [-1, 1] by the ranges that the data set's description
    publishes: no client has to say anything about its own data.
    """
    description = _folder() / "descr" / "breast_cancer.rst"
    text = description.read_text(encoding="utf-8")
    published = re.findall(r"\): +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    low, high = np.array(published, dtype=float).T
    file = _folder() / "data" / "breast_cancer.csv"
    table = np.loadtxt(file, delimiter=",", skiprows=1)
    rows = 2 * (table[:, :-1] - low) / (high - low) - 1
    images = torch.from_numpy(rows.astype(np.float32))[:, None, None, :]
    return Examples(images, _class_numbers(table), 2)


BUNDLED = {"digits": _digits, "breast-cancer": _breast_cancer}
"""Functions that return all examples of a data set, by its name."""


def split(examples: Examples, seed: int = 0) -> tuple[Examples, Examples]:
    """Split examples into 80 % for training and 20 % for tests, alike in each class.

    The two are those of `Dataset.train_test_split(0.2, stratify_by_column="label")` in
    the package `datasets`, for the same seed.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(examples.labels.numpy())
    num_test = math.ceil(_TEST_SHARE * len(examples))
    in_train = _apportion(len(examples) - num_test, counts, rng)
    in_test = _apportion(num_test, counts - in_train, rng)
    train, test = [], []
    for number, (some, others) in enumerate(zip(in_train, in_test, strict=True)):
        members = np.flatnonzero(examples.labels.numpy() == number)
        members = members[rng.permutation(len(members))]
        train.append(members[:some])
        test.append(members[some : some + others])
    parts = [rng.permutation(np.concatenate(part)) for part in (train, test)]
    first, second = (examples[torch.from_numpy(part)] for part in parts)
    return first, second


def _apportion(
    seats: int, counts: "np.ndarray[Any, Any]", rng: np.random.Generator
) -> "np.ndarray[Any, Any]":
    """Divide seats in proportion to counts: the largest remainders get one more.

    Lots are drawn among equal remainders.
    """
    exact = seats * counts / counts.sum()
    found: np.ndarray[Any, Any] = np.floor(exact).astype(np.int64)
    remainders = exact - np.floor(exact)
    for value in np.unique(remainders)[::-1]:
        left = seats - int(found.sum())
        if left <= 0:
            break
        (tied,) = np.nonzero(remainders == value)
        found[rng.choice(tied, min(len(tied), left), replace=False)] += 1
    return found


def _class_numbers(table: "np.ndarray[Any, Any]") -> Tensor:
    return torch.from_numpy(table[:, -1].astype(np.int64))


def _folder() -> Path:
    """Return scikit-learn's folder of data, without an import of scikit-learn."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    return Path(spec.origin).parent / "datasets"
