"""Optimizers of the app: double momentum, momentum, or plain SGD.

Each kind builds two optimizers. `local` is for clients that take steps of their own and
send the resulting model. `vector` takes one step of size 1, which leaves x - d: the
received model minus the vector d, along which the server steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, cast

from flwr_ctma.errors import parameter_error
from flwr_ctma.optim.schedules import Fixed, Floored, Paper, Schedule, Unaveraged
from flwr_ctma.spec import check_fields, parse, spell

# To check a run-config needs no torch, which takes more than a second to import.
if TYPE_CHECKING:
    from torch import Tensor

    from clients.vector_sgd import Optimizer

__all__ = [
    "Momentum",
    "Mu2",
    "Optimization",
    "PlainSGD",
    "parse_optimizer",
]


class Optimization(ABC):
    """The vector that a client computes, and how the server averages its steps.

    Attributes
    ----------
    schedule : Schedule
        Source of α and γ for the server's steps.
    radius : float
        The server projects its iterate on the ball of this radius.
    """

    schedule: Schedule = Fixed(storm_beta=1.0, gamma=1.0)
    radius: float = inf

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def local(
        self, x: "Tensor", buffers: "Iterable[Tensor]", lr: float, weight_decay: float
    ) -> "Optimizer":
        """Build the optimizer for steps on the client; x holds all weights."""

    @abstractmethod
    def vector(self, x: "Tensor", buffers: "Iterable[Tensor]") -> "Optimizer":
        """Build the optimizer whose one step leaves x - d."""

    def __str__(self) -> str:
        """Return the spelling that `parse_optimizer` reads."""
        return spell(self, {**_OPTIMIZERS, **_SCHEDULES})


@dataclass(frozen=True)
class Mu2(Optimization):
    """Double momentum, μ²-SGD (Dahan & Levy, ICML 2024).

    Parameters
    ----------
    schedule : Schedule (default: Fixed())
        α, β and γ. With steps on the server, α and γ count the server's rounds, and β
        counts the rounds of the client.
    radius : float (default: inf)
        The iterate is projected on the ball of this radius around the origin.

    Examples
    --------
    >>> parse_optimizer("mu2(floored)")
    Mu2(schedule=Floored(floor=0.01), radius=inf)
    """

    schedule: Schedule = Fixed()  # noqa: RUF009, a frozen value
    radius: float = inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0:
            raise parameter_error("radius", "greater than 0", self.radius)

    def local(
        self, x: "Tensor", buffers: "Iterable[Tensor]", lr: float, weight_decay: float
    ) -> "Optimizer":
        """Build Mu2SGD, with iterate and average on the client."""
        from flwr_ctma.optim.mu2sgd import Mu2SGD

        return Mu2SGD(
            [x],
            lr,
            self.schedule,
            weight_decay=weight_decay,
            radius=self.radius,
            buffers=buffers,
        )

    def vector(self, x: "Tensor", buffers: "Iterable[Tensor]") -> "Optimizer":
        """Build the corrected momentum at this client's last query point."""
        from flwr_ctma.optim.mu2sgd import Mu2SGD

        schedule = Unaveraged(self.schedule)
        return Mu2SGD([x], 1.0, schedule, buffers=buffers)


@dataclass(frozen=True)
class Momentum(Optimization):
    """Distributed momentum (Farhadkhani et al., ICML 2022): m ← β m + (1 - β) g.

    The first momentum is the first gradient.

    Parameters
    ----------
    beta : float (default: 0.9)
        β, the weight of the old vector, in [0, 1).

    Examples
    --------
    >>> parse_optimizer("momentum(beta=0.99)")
    Momentum(beta=0.99)
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < 1:
            raise parameter_error("beta", "in [0, 1)", self.beta)

    def local(
        self, x: "Tensor", buffers: "Iterable[Tensor]", lr: float, weight_decay: float
    ) -> "Optimizer":
        """Build SGD with damped momentum."""
        from clients.vector_sgd import VectorSGD

        return VectorSGD(x, lr, self.beta, weight_decay)

    def vector(self, x: "Tensor", buffers: "Iterable[Tensor]") -> "Optimizer":
        """Build the optimizer with steps of size 1; the server decays the weights."""
        return self.local(x, buffers, 1.0, weight_decay=0.0)


@dataclass(frozen=True)
class PlainSGD(Optimization):
    """SGD: the vector is the gradient.

    Examples
    --------
    >>> parse_optimizer("sgd")
    PlainSGD()
    """

    def local(
        self, x: "Tensor", buffers: "Iterable[Tensor]", lr: float, weight_decay: float
    ) -> "Optimizer":
        """Build SGD without momentum."""
        from clients.vector_sgd import VectorSGD

        return VectorSGD(x, lr, weight_decay=weight_decay)

    def vector(self, x: "Tensor", buffers: "Iterable[Tensor]") -> "Optimizer":
        """Build the optimizer with steps of size 1; the server decays the weights."""
        return self.local(x, buffers, 1.0, weight_decay=0.0)


_OPTIMIZERS: dict[str, type] = {"mu2": Mu2, "momentum": Momentum, "sgd": PlainSGD}
_SCHEDULES: dict[str, type] = {"paper": Paper, "fixed": Fixed, "floored": Floored}


def parse_optimizer(text: str) -> Optimization:
    """Build an optimizer from its spelling: `mu2(floored)`, `momentum`, `sgd`.

    Raises
    ------
    ValueError
        If the text is not the spelling of an optimizer.
    """
    if text.partition("(")[0].strip() not in _OPTIMIZERS:
        raise parameter_error("optimizer", f"one of {', '.join(_OPTIMIZERS)}", text)
    return cast(Optimization, parse(text, {**_OPTIMIZERS, **_SCHEDULES}, "optimizer"))
