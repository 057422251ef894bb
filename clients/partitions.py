"""How the training data are dealt out to the clients."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import check_fields, parse

__all__ = [
    "Dirichlet",
    "Iid",
    "Partitioner",
    "Shards",
    "Similarity",
    "parse_partitioner",
]

Deal = Callable[[int], Dataset]
"""Return the examples of a partition."""


class Partitioner(Hashable, Protocol):
    """A way to deal out shuffled training data."""

    def deal(self, train: Dataset, label: str, num_partitions: int, seed: int) -> Deal:
        """Return a function from partition to examples; `label` names the classes."""


@dataclass(frozen=True)
class Iid:
    """Equal shares of the shuffled examples."""

    # As `IidPartitioner` does, whose package imports one for plots.
    def deal(self, train: Dataset, label: str, num_partitions: int, seed: int) -> Deal:
        """Return a function from partition to examples."""
        return lambda i: train.shard(num_partitions, i, contiguous=True)


@dataclass(frozen=True)
class Dirichlet:
    """Shares of each class drawn from a Dirichlet distribution.

    Parameters
    ----------
    alpha : float
        Concentration; a small one makes clients differ.
    """

    alpha: float

    def deal(self, train: Dataset, label: str, num_partitions: int, seed: int) -> Deal:
        """Return a function from partition to examples."""
        from flwr_datasets.partitioner import DirichletPartitioner

        partitioner = DirichletPartitioner(
            num_partitions, label, self.alpha, min_partition_size=1, seed=seed
        )
        partitioner.dataset = train
        return cast(Deal, partitioner.load_partition)


@dataclass(frozen=True)
class Shards:
    """A few pieces of the examples sorted by class, so most clients lack most classes.

    Parameters
    ----------
    per_client : int (default: 2)
        Pieces of each client.

    References
    ----------
    McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, section 3.
    """

    per_client: int = 2

    def __post_init__(self) -> None:
        """Check the number of pieces."""
        check_fields(self)
        if self.per_client < 1:
            raise parameter_error("per_client", "at least 1", self.per_client)

    def deal(self, train: Dataset, label: str, num_partitions: int, seed: int) -> Deal:
        """Return a function from partition to examples."""
        count = num_partitions * self.per_client
        if len(train) < count:
            raise parameter_error(
                "per_client",
                f"at most {len(train) // num_partitions} where {num_partitions} "
                f"clients share {len(train)} examples",
                self.per_client,
            )
        pieces = np.array_split(_by_class(train, label), count)
        order = np.random.default_rng(seed).permutation(count)
        return lambda i: train.select(
            np.concatenate([pieces[j] for j in order[i::num_partitions]])
        )


@dataclass(frozen=True)
class Similarity:
    """A share γ of the examples dealt out alike, and the others sorted by class.

    Parameters
    ----------
    gamma : float (default: 0.5)
        γ in [0, 1); with 0, all examples are sorted.

    References
    ----------
    Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated
    Learning", ICML 2020, section 7.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        """Check γ."""
        check_fields(self)
        if not 0 <= self.gamma < 1:
            remedy = "`iid` deals out all examples alike."
            raise parameter_error("gamma", "in [0, 1)", self.gamma, remedy)

    def deal(self, train: Dataset, label: str, num_partitions: int, seed: int) -> Deal:
        """Return a function from partition to examples."""
        alike = round(self.gamma * len(train))
        rest = alike + _by_class(train.select(range(alike, len(train))), label)
        shares = [np.array_split(x, num_partitions) for x in (np.arange(alike), rest)]
        return lambda i: train.select(np.concatenate([share[i] for share in shares]))


def _by_class(train: Dataset, label: str) -> NDArray[np.intp]:
    """Return the indices of examples, sorted by class."""
    return np.argsort(train[label], kind="stable")


_PARTITIONERS = {"iid": Iid, "shards": Shards, "similarity": Similarity}


def parse_partitioner(text: str, alpha: float = 1.0) -> Partitioner:
    """Return the partitioner that a run-config spells; `alpha` is for `dirichlet`.

    Raises
    ------
    ValueError
        If the text spells no partitioner.

    Examples
    --------
    >>> parse_partitioner("shards"), parse_partitioner("dirichlet", alpha=0.3)
    (Shards(per_client=2), Dirichlet(alpha=0.3))
    """
    if text == "dirichlet":
        return Dirichlet(alpha)
    if text.partition("(")[0].strip() == "dirichlet":
        remedy = "Set the key `alpha`."
        raise parameter_error("partitioner", "`dirichlet` alone", text, remedy)
    if text.partition("(")[0].strip() not in _PARTITIONERS:
        names = ", ".join(["dirichlet", *_PARTITIONERS])
        raise parameter_error("partitioner", f"one of {names}", text)
    return cast(Partitioner, parse(text, _PARTITIONERS, "partitioner"))
