"""What every client and the server share: the data, and the evaluation of a model."""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.blocks import outputs
from clients.bundled import BUNDLED, split
from clients.config import RunConfig
from clients.examples import Examples
from clients.partitions import Partitioner
from flwr_ctma.errors import parameter_error

__all__ = [
    "Examples",
    "evaluate",
    "find_device",
    "load_held_out",
    "load_train",
]

_AT_ONCE = 250  # more, and what the layers compute leaves the cache
_VALIDATION_SHARE = 0.1

Source = tuple[str, str]
"""A dataset, and which of its examples no client has: `test` or `validation`."""

Deal = tuple[Source, Partitioner, int, int]
"""A source, how it is dealt out, a seed, and the number of partitions."""


class Collection(Protocol):
    """Examples that are in memory, or decoded as they are selected."""

    @property
    def labels(self) -> Tensor:
        """Class numbers of all examples."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: Tensor) -> Examples:
        """Return some of the examples."""


def load_train(config: RunConfig, partition: int, num_partitions: int) -> Examples:
    """Load the examples of one client."""
    source = (config.dataset, config.evaluate_on)
    deal = (source, config.dealing, config.seed, num_partitions)
    return _partitions(deal)(partition)


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
    dataset, held_out = source
    train, test = _loaded(dataset)
    if held_out == "validation":
        return train[_validation_and_rest(len(train))[0]]
    return test[torch.arange(len(test))]


@lru_cache(maxsize=4)
def _partitions(deal: Deal) -> Callable[[int], Examples]:
    """Return the examples by partition; each is selected once, however many there are.

    No example is decoded anew for another deal of the same data.
    """
    train, _ = _loaded(deal[0][0])
    return cache(lambda partition: train[_dealt(deal)[partition]])


@lru_cache(maxsize=64)  # seeds of a sweep take turns, and positions are small
def _dealt(deal: Deal) -> list[Tensor]:
    """Deal out the training data: the positions of the examples of each client."""
    (dataset, held_out), partitioner, seed, num_partitions = deal
    train, _ = _loaded(dataset)
    order = torch.arange(len(train))
    if held_out == "validation":
        order = _validation_and_rest(len(train))[1]
    order = order[torch.from_numpy(np.random.default_rng(seed).permutation(len(order)))]
    labels = train.labels[order].numpy()
    dealt = partitioner.deal(labels, num_partitions, seed)
    if not all(map(len, dealt)):
        raise parameter_error(
            "num-nodes",
            f"a number that leaves each client examples, where {partitioner} deals out "
            f"{len(order)} of them",
            num_partitions,
        )
    return [order[torch.from_numpy(positions)] for positions in dealt]


def _validation_and_rest(count: int) -> tuple[Tensor, Tensor]:
    """Return positions of a tenth of the examples, and those of the others."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(count))
    withheld = math.ceil(_VALIDATION_SHARE * count)
    return order[:withheld], order[withheld:]


@lru_cache(maxsize=1)
def _loaded(dataset: str) -> tuple[Collection, Collection]:
    """Return the examples for training and those for tests."""
    if dataset in BUNDLED:
        return split(BUNDLED[dataset]())
    from clients import hub  # `datasets` takes most of a second to import

    return hub.load(dataset)
