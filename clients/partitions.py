"""How the training data are dealt out to the clients."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
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

Labels = NDArray[np.int64]
Positions = NDArray[np.intp]


class Partitioner(Hashable, Protocol):
    """A way to deal out shuffled training data."""

    def deal(self, labels: Labels, num_partitions: int, seed: int) -> list[Positions]:
        """Return the positions of each client's examples, given all labels."""


@dataclass(frozen=True)
class Iid:
    """Equal shares of the shuffled examples."""

    def deal(self, labels: Labels, num_partitions: int, seed: int) -> list[Positions]:
        """Return the positions of each client's examples."""
        return np.array_split(np.arange(len(labels)), num_partitions)


@dataclass(frozen=True)
class Dirichlet:
    """Shares of each class drawn from a Dirichlet distribution.

    Parameters
    ----------
    alpha : float
        Concentration; a small one makes clients differ.
    """

    alpha: float

    def deal(self, labels: Labels, num_partitions: int, seed: int) -> list[Positions]:
        """Return the positions of each client's examples."""
        # Both packages take most of a second to import.
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner

        partitioner = DirichletPartitioner(
            num_partitions, "label", self.alpha, min_partition_size=1, seed=seed
        )
        columns = {"label": labels, "position": np.arange(len(labels))}
        partitioner.dataset = Dataset.from_dict(columns).with_format("numpy")
        return [
            partitioner.load_partition(i)["position"][:] for i in range(num_partitions)
        ]


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

    def deal(self, labels: Labels, num_partitions: int, seed: int) -> list[Positions]:
        """Return the positions of each client's examples."""
        count = num_partitions * self.per_client
        if len(labels) < count:
            raise parameter_error(
                "per_client",
                f"at most {len(labels) // num_partitions} where {num_partitions} "
                f"clients share {len(labels)} examples",
                self.per_client,
            )
        pieces = np.array_split(_by_class(labels), count)
        order = np.random.default_rng(seed).permutation(count)
        return [
            np.concatenate([pieces[j] for j in order[i::num_partitions]])
            for i in range(num_partitions)
        ]


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

    def deal(self, labels: Labels, num_partitions: int, seed: int) -> list[Positions]:
        """Return the positions of each client's examples."""
        alike = round(self.gamma * len(labels))
        rest = alike + _by_class(labels[alike:])
        shares = [np.array_split(x, num_partitions) for x in (np.arange(alike), rest)]
        return [np.concatenate(share) for share in zip(*shares, strict=True)]


def _by_class(labels: Labels) -> Positions:
    """Return the positions of examples, sorted by class."""
    return np.argsort(labels, kind="stable")


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
