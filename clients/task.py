"""What every client and the server share: the data, and the evaluation of a model."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    disable_progress_bars,
    load_dataset,
)
from torch import Tensor, nn
from torch.nn import functional

from clients.blocks import outputs
from clients.config import RunConfig
from clients.partitions import Partitioner
from flwr_ctma.errors import parameter_error

__all__ = [
    "Examples",
    "evaluate",
    "find_device",
    "load_held_out",
    "load_train",
]

disable_progress_bars()

_AT_ONCE = 250  # more, and what the layers compute leaves the cache

Source = tuple[str, str]
"""A dataset, and which of its examples no client has: `test` or `validation`."""


@dataclass(frozen=True)
class Examples:
    """Labelled images: (m, channels, height, width) in [-1, 1], and m class numbers.

    A row of features is an image of one channel and one row of pixels.
    """

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Examples":
        """Select some of the examples."""
        return Examples(self.images[index], self.labels[index], self.num_classes)

    def to(self, device: torch.device) -> "Examples":
        """Move the tensors to a device."""
        return Examples(
            self.images.to(device), self.labels.to(device), self.num_classes
        )


def load_train(config: RunConfig, partition: int, num_partitions: int) -> Examples:
    """Load the examples of one client."""
    source = (config.dataset, config.evaluate_on)
    dealt = _dealt(source, config.dealing, config.seed, num_partitions)
    return dealt(partition)


def load_held_out(config: RunConfig) -> Examples:
    """Load the examples that no client has, which the server evaluates on."""
    return _held_out((config.dataset, config.evaluate_on))


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy of a model."""
    model.eval()
    loss = correct = 0.0
    for images, labels in zip(
        torch.split(examples.images, _AT_ONCE),
        torch.split(examples.labels, _AT_ONCE),
        strict=True,
    ):
        logits = outputs(model, images)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
    return loss / len(examples), correct / len(examples)


def find_device(name: str) -> torch.device:
    """Find the device that the run-config names."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise parameter_error("device", "auto or cpu where there is no GPU", name)
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@lru_cache(maxsize=1)
def _held_out(source: Source) -> Examples:
    return _decoded(_splits(source)["test"])


@lru_cache(maxsize=4)
def _dealt(
    source: Source, partitioner: Partitioner, seed: int, num_partitions: int
) -> Callable[[int], Examples]:
    """Deal out the data; each partition is decoded once, however many there are."""
    train = _splits(source)["train"].shuffle(seed=seed)
    _, label = _columns(train)
    deal = partitioner.deal(train, label, num_partitions, seed)
    return cache(lambda partition: _decoded(deal(partition)))


@lru_cache(maxsize=1)
def _splits(source: Source) -> DatasetDict:
    dataset, held_out = source
    if held_out == "validation":
        train = _loaded(dataset)["train"]
        return train.train_test_split(test_size=0.1, seed=0)
    return _loaded(dataset)


@lru_cache(maxsize=1)
def _loaded(dataset: str) -> DatasetDict:
    if dataset in _BUNDLED:
        return _BUNDLED[dataset]().train_test_split(
            test_size=0.2, stratify_by_column="label", seed=0
        )
    try:
        splits = load_dataset(str(Path(dataset).expanduser()))
    except Exception as error:
        raise parameter_error(
            *("dataset", f"one of {', '.join(_BUNDLED)}, or loadable by `datasets`"),
            *(dataset, str(error)),
        ) from error
    if not {"train", "test"} <= set(splits):
        raise parameter_error(
            "dataset",
            f"one with the splits train and test, not {list(splits)}",
            dataset,
        )
    return splits


def _digits() -> Dataset:
    """Return scikit-learn's handwritten digits, of 8 × 8 pixels."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    return Dataset.from_dict(
        {"image": list(pixels), "label": digits.target}, features=features
    )


def _cancer() -> Dataset:
    """Return scikit-learn's table of tumours: 30 features, malignant or benign.

    Features are scaled to [-1, 1] by the ranges that the data set's description
    publishes: no client has to say anything about its own data.
    """
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    published = re.findall(r"\): +([\d.]+) +([\d.]+)$", found.DESCR, re.MULTILINE)
    low, high = np.array(published, dtype=float).T
    rows = 2 * (found.data - low) / (high - low) - 1
    features = Features(
        {
            "features": List(Value("float32"), length=rows.shape[1]),
            "label": ClassLabel(names=[*found.target_names]),
        }
    )
    return Dataset.from_dict(
        {"features": rows, "label": found.target}, features=features
    )


_BUNDLED = {"digits": _digits, "breast-cancer": _cancer}
"""Data that scikit-learn has on board: no download."""


def _columns(dataset: Dataset) -> tuple[str, str]:
    """Find the column of images or features and the labels, whatever their names."""
    kinds = {type(feature): name for name, feature in dataset.features.items()}
    inputs = kinds.get(Image, kinds.get(List))
    if inputs is None or ClassLabel not in kinds:
        raise parameter_error(
            "dataset",
            "one with a column of images, or of rows of features, and one of class "
            "labels",
            dict(dataset.features),
        )
    return inputs, kinds[ClassLabel]


def _decoded(dataset: Dataset) -> Examples:
    column, label = _columns(dataset)
    columns = dataset.with_format("numpy")[:]
    values = np.asarray(columns[column])
    if isinstance(dataset.features[column], Image):
        pixels = values[..., None] if values.ndim == 3 else values
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    else:
        images = torch.from_numpy(values).float()[:, None, None, :]
    labels = torch.from_numpy(np.asarray(columns[label], dtype=np.int64))
    return Examples(images.contiguous(), labels, dataset.features[label].num_classes)
