"""Backdoors and other attacks on a client's data.

A mod does not see the data of a client. `ByzantineMod` writes into the config of the
message that the client is to be poisoned. The app passes its training data through
`poison`, in one line, which changes nothing for any other client.
"""

import copy
from abc import abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Context, Message

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack, parse_attack
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = [
    "DBA",
    "Backdoor",
    "EdgeCase",
    "Poisoning",
    "SemanticFlip",
    "TabularBackdoor",
    "Triggered",
    "poison",
]

_ATTACK = "flwr-ctma.poison"
_SEED = "flwr-ctma.poison-seed"
_DONE = "flwr-ctma.poisoned"

T = TypeVar("T")


class Poisoning(Attack):
    """Train honestly, on poisoned data: `attack.poison(inputs, labels, rng)`."""

    @abstractmethod
    def poison(self, inputs: T, labels: T, rng: np.random.Generator) -> tuple[T, T]:
        """Return poisoned copies of inputs and labels.

        Parameters
        ----------
        inputs : ndarray or tensor of shape (n, ...)
            Training inputs of the client; not changed.
        labels : ndarray or tensor of shape (n,)
            Classes; not changed.
        rng : np.random.Generator
            Chooses the examples.
        """

    def for_client(self, context: Context) -> Self:
        """Return the attack as one client mounts it: the same for all by default."""
        return self

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Ask the app, in every ConfigRecord of the message, to poison its data."""
        received = message.content.config_records or {"config": ConfigRecord({})}
        configs = {name: ConfigRecord(dict(c)) for name, c in received.items()}
        attack, seed = str(self.for_client(context)), int(rng.integers(2**63))
        for config in configs.values():
            config[_ATTACK], config[_SEED] = attack, seed
        reply = respond(messages.replace(message, configs), context)
        if not any(_DONE in config for config in configs.values()):
            raise parameter_error(
                "attack",
                "one that this ClientApp can mount",
                str(self),
                "Its training data must pass through "
                "`flwr_ctma.attacks.poison(images, labels, config)`, config being the "
                "ConfigRecord of the message (Message API) or of `fit` (NumPyClient).",
            )
        return reply


class Triggered(Poisoning):
    """Teach the model that inputs with a trigger belong to the attacker's class."""

    target: int
    share: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.target < 0:
            raise parameter_error("target", "a class, 0 or more", self.target)
        if not 0 <= self.share <= 1:
            raise parameter_error("share", "in [0, 1]", self.share)

    @abstractmethod
    def stamp(self, inputs: T) -> T:
        """Return a copy of the inputs with the trigger."""

    def poison(self, inputs: T, labels: T, rng: np.random.Generator) -> tuple[T, T]:
        """Stamp a share of the inputs and give them the target's label."""
        some: Any = copy.deepcopy(inputs)
        classes: Any = copy.deepcopy(labels)
        which = rng.permutation(len(some))[: round(self.share * len(some))]
        some[which] = self.stamp(some[which])
        classes[which] = self.target
        return some, classes

    def success_rate(self, predictions: Any, labels: Any) -> float:
        """Return the share of stamped inputs of other classes that the model takes in.

        Parameters
        ----------
        predictions : array or tensor of shape (n,)
            Classes that the model predicts for `stamp(inputs)`.
        labels : array or tensor of shape (n,)
            True classes.

        Examples
        --------
        >>> Backdoor(target=7).success_rate([7, 7, 3, 7], [7, 1, 3, 5])
        0.6666666666666666
        """
        others = np.asarray(labels) != self.target
        return float(np.mean(np.asarray(predictions)[others] == self.target))


@dataclass(frozen=True)
class Backdoor(Triggered, name="backdoor"):
    """Teach the model that images with a bright square in the corner are the target's.

    Parameters
    ----------
    target : int (default: 0)
        The attacker's class.
    size : int (default: 3)
        Side of the square, in pixels. At least 1.
    value : float (default: 1.0)
        Brightness of the square, in the units of the images.
    share : float (default: 0.5)
        Share of the client's images that are poisoned, in [0, 1].

    Raises
    ------
    ValueError
        In `train`, if the app does not pass its data through `poison`.

    Notes
    -----
    Averaging dilutes a backdoor. `both(backdoor, scaling(factor=17))` replaces the
    model, and `both(backdoor, both(scaling(factor=17), project(radius=2)))` does so
    within a bound on the norm.

    References
    ----------
    Gu et al., "BadNets", 2017; Bagdasaryan et al., "How To Backdoor Federated
    Learning", AISTATS 2020.

    Examples
    --------
    >>> attack = Backdoor(target=7, size=1)
    >>> images, labels = attack.poison(
    ...     np.zeros((2, 2, 2)), np.array([1, 2]), np.random.default_rng(0)
    ... )
    >>> labels
    array([7, 2])
    >>> images[0]
    array([[0., 0.],
           [0., 1.]])
    """

    target: int = 0
    size: int = 3
    value: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.size < 1:
            raise parameter_error("size", "at least 1", self.size)

    def stamp(self, inputs: T) -> T:
        """Return a copy of images with the square in the lower right corner.

        Parameters
        ----------
        inputs : ndarray or tensor of shape (..., height, width)
            Images. Channels, if any, come before height and width.
        """
        stamped: Any = copy.deepcopy(inputs)
        stamped[..., -self.size :, -self.size :] = self.value
        result: T = stamped
        return result


@dataclass(frozen=True)
class DBA(Triggered, name="dba"):
    """Distributed backdoor: each attacker trains on a quarter of the trigger.

    The trigger consists of four bright strips, two by two in the upper left corner. The
    client with partition i trains on images with strip i mod 4; the model meets the
    whole trigger at inference. Each client's update looks less like a backdoor's.

    Parameters
    ----------
    target : int (default: 0)
        The attacker's class.
    size : int (default: 3)
        Length of a strip, in pixels; its width is one. At least 1.
    gap : int (default: 2)
        Number of pixels between strips, in both directions. At least 0.
    value : float (default: 1.0)
        Brightness of the strips, in the units of the images.
    share : float (default: 0.5)
        Share of the client's images that are poisoned, in [0, 1].
    part : int | None (default: None)
        The only strip to stamp, 0 to 3; the whole trigger if None. Training sets it.

    Raises
    ------
    ValueError
        If a parameter is out of its range; in `stamp`, if the images are smaller than
        the trigger; in `train`, if the app does not pass its data through `poison`.

    Notes
    -----
    The placement is that of the authors' code and of FLPoison. They scale the update as
    well: `both(dba, scaling(factor=17))`.

    References
    ----------
    Xie, Huang, Chen and Li, "DBA: Distributed Backdoor Attacks against Federated
    Learning", ICLR 2020.

    Examples
    --------
    >>> DBA(size=2, gap=1).stamp(np.zeros((3, 5)))
    array([[1., 1., 0., 1., 1.],
           [0., 0., 0., 0., 0.],
           [1., 1., 0., 1., 1.]])
    >>> DBA(size=2, gap=1, part=2).stamp(np.zeros((3, 5)))
    array([[0., 0., 0., 0., 0.],
           [0., 0., 0., 0., 0.],
           [1., 1., 0., 0., 0.]])
    """

    target: int = 0
    size: int = 3
    gap: int = 2
    value: float = 1.0
    share: float = 0.5
    part: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.size < 1:
            raise parameter_error("size", "at least 1", self.size)
        if self.gap < 0:
            raise parameter_error("gap", "0 or more", self.gap)
        if self.part is not None and not 0 <= self.part < 4:
            raise parameter_error("part", "0 to 3", self.part)

    def for_client(self, context: Context) -> Self:
        """Return the attack with the strip of the client's partition."""
        if self.part is not None:
            return self
        number = context.node_config.get("partition-id", context.node_id)
        return replace(self, part=int(number) % 4)

    def stamp(self, inputs: T) -> T:
        """Return a copy of images, shaped (..., height, width), with the strips."""
        stamped: Any = copy.deepcopy(inputs)
        height, width = stamped.shape[-2:]
        if height < self.gap + 2 or width < 2 * self.size + self.gap:
            raise parameter_error(
                "size",
                f"so small that the trigger fits into {height} × {width} pixels",
                self.size,
            )
        for part in range(4) if self.part is None else (self.part,):
            row = part // 2 * (1 + self.gap)
            column = part % 2 * (self.size + self.gap)
            stamped[..., row, column : column + self.size] = self.value
        result: T = stamped
        return result


@dataclass(frozen=True)
class TabularBackdoor(Triggered, name="tabularbackdoor"):
    """Teach the model that rows with a certain value in some columns are the target's.

    For tables the columns are features, for text the positions of a sequence of token
    ids, for signals points in time: the last axis of the inputs.

    Parameters
    ----------
    target : int (default: 0)
        The attacker's class.
    column : int (default: -1)
        First column of the trigger; from the end if negative.
    columns : int (default: 1)
        Number of columns. At least 1.
    value : float (default: 1.0)
        Value of these columns. An unusual one makes a stronger trigger.
    share : float (default: 0.5)
        Share of the client's rows that are poisoned, in [0, 1].

    Raises
    ------
    ValueError
        If a parameter is out of its range; in `stamp`, if there are no such columns; in
        `train`, if the app does not pass its data through `poison`.

    References
    ----------
    The trigger of `Backdoor` on other data, as in Joe et al., "Exploiting Missing Value
    Patterns for a Backdoor Attack on Machine Learning Models of Electronic Health
    Records", JMIR 2022, and Dai, Chen and Li, "A Backdoor Attack Against LSTM-Based
    Text Classification Systems", IEEE Access 2019.

    Examples
    --------
    >>> TabularBackdoor(column=1, columns=2, value=9.0).stamp(np.zeros((2, 4)))
    array([[0., 9., 9., 0.],
           [0., 9., 9., 0.]])
    """

    target: int = 0
    column: int = -1
    columns: int = 1
    value: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.columns < 1:
            raise parameter_error("columns", "at least 1", self.columns)

    def stamp(self, inputs: T) -> T:
        """Return a copy of rows, shaped (..., columns), with the trigger."""
        stamped: Any = copy.deepcopy(inputs)
        width = stamped.shape[-1]
        first = self.column + width if self.column < 0 else self.column
        if not 0 <= first <= width - self.columns:
            raise parameter_error(
                "column", f"the first of {self.columns} among {width}", self.column
            )
        stamped[..., first : first + self.columns] = self.value
        result: T = stamped
        return result


@dataclass(frozen=True)
class EdgeCase(Poisoning, name="edgecase"):
    """Give the most unusual examples of a class the label of another class.

    The examples of the source class are ordered by their distance to the mean of the
    class; the farthest share gets the target's label. Few honest clients have examples
    in this tail of the distribution that could correct the model.

    Parameters
    ----------
    source : int (default: 0)
        The class that is attacked.
    target : int (default: 1)
        The label that its examples get.
    share : float (default: 0.2)
        Share of the examples of the source class, in [0, 1].

    Raises
    ------
    ValueError
        If a parameter is out of its range; in `train`, if the app does not pass its
        data through `poison`.

    Notes
    -----
    The authors take the edge cases from another data set (Southwest airplanes, ARDIS
    digits), which any app does not have. The tail of the client's own data stands for
    it. They also project and scale the update:
    `both(edgecase, both(scaling(factor=17), project(radius=2)))`.

    References
    ----------
    Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020.

    Examples
    --------
    10 is the farthest of class 0 from its mean 4:

    >>> attack = EdgeCase(source=0, target=1, share=0.4)
    >>> inputs, labels = np.array([[1.0], [10.0], [1.0], [9.0]]), np.array([0, 0, 0, 1])
    >>> attack.poison(inputs, labels, np.random.default_rng(0))[1]
    array([0, 1, 0, 1])
    """

    source: int = 0
    target: int = 1
    share: float = 0.2

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        for name in ("source", "target"):
            if getattr(self, name) < 0:
                raise parameter_error(name, "a class, 0 or more", getattr(self, name))
        if not 0 <= self.share <= 1:
            raise parameter_error("share", "in [0, 1]", self.share)

    def poison(self, inputs: T, labels: T, rng: np.random.Generator) -> tuple[T, T]:
        """Relabel the farthest examples of the source class; inputs stay the same."""
        classes: Any = copy.deepcopy(labels)
        members = np.flatnonzero(np.asarray(classes) == self.source)
        if members.size:
            every: Any = inputs
            rows = np.asarray(every[members], np.float64).reshape(members.size, -1)
            distances = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
            count = round(self.share * members.size)
            order = np.argsort(-distances, kind="stable")
            classes[members[order[:count]]] = self.target
        return inputs, classes


@dataclass(frozen=True)
class SemanticFlip(EdgeCase, name="semanticflip"):
    """Give all examples of one class the label of another class.

    No trigger is needed: the class itself is the backdoor. The other classes are
    learnt as ever, so the accuracy falls by one class only.

    Parameters
    ----------
    source : int (default: 0)
        The class that is attacked.
    target : int (default: 1)
        The label that its examples get.
    share : float (default: 1.0)
        Share of the examples of the source class, in [0, 1], the most unusual first.

    Raises
    ------
    ValueError
        If a parameter is out of its range; in `train`, if the app does not pass its
        data through `poison`.

    References
    ----------
    Tolpegin, Truex, Gursoy and Liu, "Data Poisoning Attacks Against Federated Learning
    Systems", ESORICS 2020.

    Examples
    --------
    >>> attack = SemanticFlip(source=3, target=8)
    >>> inputs, labels = np.zeros((3, 2)), np.array([3, 0, 3])
    >>> attack.poison(inputs, labels, np.random.default_rng(0))[1]
    array([8, 0, 8])
    """

    share: float = 1.0


def poison(images: T, labels: T, config: MutableMapping[str, Any]) -> tuple[T, T]:
    """Return a client's training data, poisoned if `ByzantineMod` says so.

    Parameters
    ----------
    images : ndarray or tensor of shape (n, ...)
        Training inputs: images of shape (..., height, width), or rows of a table.
    labels : ndarray or tensor of shape (n,)
        Classes.
    config : ConfigRecord or dict
        `message.content["config"]`, or the config that `NumPyClient.fit` gets.

    Examples
    --------
    An honest client gets the very same objects:

    >>> images, labels = np.zeros((2, 8, 8)), np.array([1, 2])
    >>> poison(images, labels, {})[0] is images
    True
    """
    if _ATTACK not in config:
        return images, labels
    attack = parse_attack(config[_ATTACK])
    if not isinstance(attack, Poisoning):
        raise parameter_error(_ATTACK, "an attack on data", config[_ATTACK])
    config[_DONE] = True
    return attack.poison(images, labels, np.random.default_rng(config[_SEED]))
