"""Updates under a constraint: a bound on the norm, or a choice of coordinates."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from numpy.typing import NDArray

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import numbers

__all__ = ["Neurotoxin", "Project"]

_LAST = "flwr-ctma.neurotoxin"

Row = NDArray[Any]


class WholeUpdate(Attack):
    """Train honestly, then change the update as one vector over all its arrays."""

    @abstractmethod
    def constrain(self, update: Row, change: Row | None) -> Row:
        """Return the update that is sent.

        Parameters
        ----------
        update : ndarray of shape (d,)
            The honest update: all floating-point arrays, one after the other.
        change : ndarray of shape (d,), optional
            By how much the global model changed since the client's last training; None
            in its first training.
        """

    def change(
        self, message: Message, context: Context, updates: dict[tuple[str, str], Row]
    ) -> Row | None:
        """Return the change of the global model, if the attack uses it."""
        return None

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Reply with the model that the server sent plus the constrained update."""
        reply = respond(message, context)
        if reply is None or not reply.has_content():
            return reply
        sent = messages.sent_numbers(message)
        updates = messages.updates(reply, sent)
        if not updates:
            return reply
        row = np.concatenate([update.ravel() for update in updates.values()])
        changed = self.constrain(row, self.change(message, context, updates))
        ends = np.cumsum([update.size for update in updates.values()])
        pieces = np.split(changed, ends[:-1])
        found = {
            name: piece.reshape(update.shape)
            for (name, update), piece in zip(updates.items(), pieces, strict=True)
        }
        return messages.set_updates(reply, sent, found)


@dataclass(frozen=True)
class Project(WholeUpdate, name="project"):
    """Project the update on a ball around the model that the server sent.

        u ← u·min(1, r/‖u‖₂)      or, coordinate by coordinate,  u ← clip(u, −r, r)

    Last in a composition, it hides another attack from a bound on norms or distances:
    `both(backdoor, both(scaling(factor=17), project(radius=2)))` is model replacement
    under a constraint.

    Parameters
    ----------
    radius : float (default: 1.0)
        r. Larger than 0.
    norm : str (default: "l2")
        "l2" or "linf".

    Raises
    ------
    ValueError
        If radius is not larger than 0, or norm is another word.

    Notes
    -----
    The authors project after every local step or epoch; a mod projects once, after the
    training.

    References
    ----------
    Sun, Kairouz, Suresh and McMahan, "Can You Really Backdoor Federated Learning?",
    2019, §3; Wang et al., "Attack of the Tails", NeurIPS 2020, where it is PGD.

    Examples
    --------
    >>> Project(radius=2.0).constrain(np.array([3.0, -4.0]), None)
    array([ 1.2, -1.6])
    >>> Project(radius=2.0, norm="linf").constrain(np.array([1.0, -4.0]), None)
    array([ 1., -2.])
    """

    radius: float = 1.0
    norm: str = "l2"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not self.radius > 0:
            raise parameter_error("radius", "larger than 0", self.radius)
        if self.norm not in ("l2", "linf"):
            raise parameter_error("norm", "l2 or linf", self.norm)

    def constrain(self, update: Row, change: Row | None) -> Row:
        """Return the projection."""
        if self.norm == "linf":
            return np.clip(update, -self.radius, self.radius)
        length = float(np.linalg.norm(update.astype(np.float64)))
        return update * (self.radius / length) if length > self.radius else update


@dataclass(frozen=True)
class Neurotoxin(WholeUpdate, name="neurotoxin"):
    """Write only where honest updates are small, so that they do not overwrite it.

    With the change g of the global model since the client's last training, the update
    keeps the share k of the coordinates with the smallest `|g_j|`, and is 0 elsewhere.
    A backdoor that is written there lasts: `both(backdoor, neurotoxin)`.

    Parameters
    ----------
    share : float (default: 0.95)
        k, the share of the coordinates that are kept. In (0, 1].

    Raises
    ------
    ValueError
        If share is not in (0, 1].

    Notes
    -----
    The client keeps the last global model in `context.state`; its first update is sent
    whole. The authors mask the gradient in every local step, a mod masks the update
    once. For SGD without momentum on the masked coordinates both stay in the same
    subspace, but the steps differ.

    References
    ----------
    Zhang et al., "Neurotoxin: Durable Backdoors in Federated Learning", ICML 2022,
    Algorithm 1.

    Examples
    --------
    The model moved most in the first coordinate:

    >>> attack = Neurotoxin(share=0.5)
    >>> attack.constrain(np.array([1.0, 2.0]), change=np.array([-9.0, 0.1]))
    array([0., 2.])
    """

    share: float = 0.95

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise parameter_error("share", "in (0, 1]", self.share)

    def constrain(self, update: Row, change: Row | None) -> Row:
        """Return the update on the coordinates with the smallest change."""
        if change is None:
            return update
        kept = np.argsort(np.abs(change), kind="stable")
        kept = kept[: round(self.share * update.size)]
        masked = np.zeros_like(update)
        masked[kept] = update[kept]
        return masked

    def change(
        self, message: Message, context: Context, updates: dict[tuple[str, str], Row]
    ) -> Row | None:
        """Return the change of the global model, and keep the model for the next."""
        sent = messages.sent_numbers(message)
        arrays = [
            messages.sent_array(sent, record, key, update).ravel()
            for (record, key), update in updates.items()
        ]
        model = np.concatenate(arrays)
        last = context.state.array_records.get(_LAST)
        context.state[_LAST] = ArrayRecord({"model": Array(model)})
        if last is None or numbers(last["model"]).shape != model.shape:
            return None
        change: Row = model - numbers(last["model"])
        return change
