"""What every client and the server share: the data, the model and its evaluation."""

from collections.abc import Callable, Iterator
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
    disable_progress_bars,
    load_dataset,
)
from torch import Tensor, nn
from torch.nn import functional

from clients.blocks import outputs
from clients.config import RunConfig
from flwr_ctma.errors import parameter_error

__all__ = [
    "Examples",
    "build_model",
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
    """Labelled images: (m, channels, height, width) in [-1, 1], and m class numbers."""

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
    alpha = config.alpha if config.partitioner == "dirichlet" else None
    source = (config.dataset, config.evaluate_on)
    return _dealt(source, alpha, config.seed, num_partitions)(partition)


def load_held_out(config: RunConfig) -> Examples:
    """Load the examples that no client has, which the server evaluates on."""
    return _held_out((config.dataset, config.evaluate_on))


def build_model(like: Examples, config: RunConfig) -> nn.Module:
    """Build a convolutional network for images of this shape.

    `small` has kernels of 3 × 3; `paper` has kernels of 5 × 5, each layer normalised
    over its batch. The same seed gives the same initial weights, whatever ran before.
    """
    _, channels, height, width = like.images.shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # the CPU's alone
        layer = {"small": _small_layer, "paper": _paper_layer}[config.model]
        return nn.Sequential(
            *layer(channels, 16),
            *layer(16, 32),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), like.num_classes),
        )


def _small_layer(inside: int, outside: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(inside, outside, kernel_size=3, padding=1)
    yield nn.MaxPool2d(2)  # before ReLU: the same numbers, a quarter of the work
    yield nn.ReLU()


def _paper_layer(inside: int, outside: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(inside, outside, kernel_size=5, padding=2)
    yield nn.BatchNorm2d(outside)
    yield nn.MaxPool2d(2)
    yield nn.ReLU()


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
    source: Source, alpha: float | None, seed: int, num_partitions: int
) -> Callable[[int], Examples]:
    """Deal out the data; each partition is decoded once, however many there are."""
    train = _splits(source)["train"].shuffle(seed=seed)
    if alpha is None:  # as `IidPartitioner` does; its package imports one for plots
        return cache(
            lambda partition: _decoded(
                train.shard(num_partitions, partition, contiguous=True)
            )
        )
    from flwr_datasets.partitioner import DirichletPartitioner

    _, label = _columns(train)
    partitioner = DirichletPartitioner(
        num_partitions, label, alpha, min_partition_size=1, seed=seed
    )
    partitioner.dataset = train
    return cache(lambda partition: _decoded(partitioner.load_partition(partition)))


@lru_cache(maxsize=1)
def _splits(source: Source) -> DatasetDict:
    dataset, held_out = source
    if held_out == "validation":
        train = _loaded(dataset)["train"]
        return train.train_test_split(test_size=0.1, seed=0)
    return _loaded(dataset)


@lru_cache(maxsize=1)
def _loaded(dataset: str) -> DatasetDict:
    if dataset == "digits":
        return _digits()
    try:
        splits = load_dataset(str(Path(dataset).expanduser()))
    except Exception as error:
        raise parameter_error(
            "dataset", "`digits` or loadable by `datasets`", dataset, str(error)
        ) from error
    if not {"train", "test"} <= set(splits):
        raise parameter_error(
            "dataset",
            f"one with the splits train and test, not {list(splits)}",
            dataset,
        )
    return splits


def _digits() -> DatasetDict:
    """Split scikit-learn's bundled digits: 8 × 8 pixels, no download."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    dataset = Dataset.from_dict(
        {"image": list(pixels), "label": digits.target}, features=features
    )
    return dataset.train_test_split(test_size=0.2, stratify_by_column="label", seed=0)


def _columns(dataset: Dataset) -> tuple[str, str]:
    """Find the image column and the label column, whatever they are called."""
    kinds = {type(feature): name for name, feature in dataset.features.items()}
    if Image not in kinds or ClassLabel not in kinds:
        raise parameter_error(
            "dataset",
            "one with a column of images and one of class labels",
            dict(dataset.features),
        )
    return kinds[Image], kinds[ClassLabel]


def _decoded(dataset: Dataset) -> Examples:
    image, label = _columns(dataset)
    columns = dataset.with_format("numpy")[:]
    pixels = np.asarray(columns[image])
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(np.asarray(columns[label], dtype=np.int64))
    return Examples(images.contiguous(), labels, dataset.features[label].num_classes)
