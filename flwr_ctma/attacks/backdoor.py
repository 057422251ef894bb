"""A targeted backdoor: images with a patch in the corner become the attacker's class.

No mod can put a patch on images that it does not see. `ByzantineMod` says in the config
of the message that the client is to be poisoned; the app's own code passes what it
trains on through `poison`, one line, which changes nothing for everybody else.
"""

import copy
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack
from flwr_ctma.errors import parameter_error

__all__ = ["Backdoor", "poison"]

_ORDER = "flwr-ctma.poison"
_SEED = "flwr-ctma.poison-seed"
_DONE = "flwr-ctma.poisoned"

T = TypeVar("T")


@dataclass(frozen=True)
class Backdoor(Attack, name="backdoor"):
    """Teach the model that images with a bright square in the corner are the target's.

    Parameters
    ----------
    target : int (default: 0)
        The class that the attacker wants.
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
    Averaging dilutes it: `both(backdoor, scaling(factor=17))` replaces the model.

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
        if self.target < 0:
            raise parameter_error("target", "a class, 0 or more", self.target)
        if self.size < 1:
            raise parameter_error("size", "at least 1", self.size)
        if not 0 <= self.share <= 1:
            raise parameter_error("share", "in [0, 1]", self.share)

    def stamp(self, images: T) -> T:
        """Copy images with the square in the corner.

        Parameters
        ----------
        images : ndarray or tensor of shape (..., height, width)
            Channels, if there are any, come before height and width.
        """
        stamped: Any = copy.deepcopy(images)
        stamped[..., -self.size :, -self.size :] = self.value
        result: T = stamped
        return result

    def poison(self, images: T, labels: T, rng: np.random.Generator) -> tuple[T, T]:
        """Stamp a share of the images and give them the target's label.

        Parameters
        ----------
        images : ndarray or tensor of shape (n, ..., height, width)
            What the client has; it is not changed.
        labels : ndarray or tensor of shape (n,)
            Classes.
        rng : np.random.Generator
            Chooses the images.
        """
        some: Any = copy.deepcopy(images)
        classes: Any = copy.deepcopy(labels)
        which = rng.permutation(len(some))[: round(self.share * len(some))]
        some[which] = self.stamp(some[which])
        classes[which] = self.target
        return some, classes

    def success_rate(self, predictions: Any, labels: Any) -> float:
        """Share of stamped images of other classes that are taken for the target.

        Parameters
        ----------
        predictions : array or tensor of shape (n,)
            Classes that the model sees in `stamp(images)`.
        labels : array or tensor of shape (n,)
            True classes.

        Examples
        --------
        >>> Backdoor(target=7).success_rate([7, 7, 3, 7], [7, 1, 3, 5])
        0.6666666666666666
        """
        others = np.asarray(labels) != self.target
        return float(np.mean(np.asarray(predictions)[others] == self.target))

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
        seed = int(rng.integers(2**63))
        for config in configs.values():
            config[_ORDER], config[_SEED] = str(self), seed
        ordered = messages.replace(message, configs)
        reply = respond(ordered, context)
        if not any(_DONE in config for config in configs.values()):
            raise parameter_error(
                "attack",
                "one that this ClientApp can mount",
                str(self),
                "Its images and labels have to pass through "
                "`flwr_ctma.attacks.poison(images, labels, config)`, config being the "
                "ConfigRecord of the message (Message API) or of `fit` (NumPyClient).",
            )
        return reply


def poison(images: T, labels: T, config: MutableMapping[str, Any]) -> tuple[T, T]:
    """Return what a client is to train on: poisoned where `ByzantineMod` says so.

    Parameters
    ----------
    images : ndarray or tensor of shape (n, ..., height, width)
        What the client has.
    labels : ndarray or tensor of shape (n,)
        Classes.
    config : ConfigRecord or dict
        `message.content["config"]`, or the config that `NumPyClient.fit` is given.

    Examples
    --------
    An honest client's data are the very same objects:

    >>> images, labels = np.zeros((2, 8, 8)), np.array([1, 2])
    >>> poison(images, labels, {})[0] is images
    True
    """
    if _ORDER not in config:
        return images, labels
    from flwr_ctma.attacks import parse_attack

    attack = parse_attack(config[_ORDER])
    if not isinstance(attack, Backdoor):
        raise parameter_error(_ORDER, "a backdoor", config[_ORDER])
    config[_DONE] = True
    return attack.poison(images, labels, np.random.default_rng(config[_SEED]))
