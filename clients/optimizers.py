"""How the model is trained: double momentum, momentum or neither, and who steps.

Each kind builds two torch optimizers. With `local` a client takes steps of its own and
sends the model that they lead to. With `vector` it takes one step of size 1, which
leaves x - d: the model that it was sent, less the vector d that the server steps along.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import cast

from torch import Tensor
from torch.optim import SGD, Optimizer

from flwr_ctma.errors import parameter_error
from flwr_ctma.optim.mu2sgd import Mu2SGD
from flwr_ctma.optim.schedules import Fixed, Floored, Paper, Schedule, Unaveraged
from flwr_ctma.spec import check_fields, parse, spell

__all__ = ["Momentum", "Mu2", "Optimization", "Plain", "parse_optimizer"]


class Optimization(ABC):
    """What a client's vector is made of, and how the server averages its steps.

    Attributes
    ----------
    schedule : Schedule
        α and γ of the server's steps.
    radius : float
        The server's iterate is projected on the ball of this radius.
    """

    schedule: Schedule = Fixed(storm_beta=1.0, gamma=1.0)
    radius: float = inf

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def local(
        self, x: Tensor, buffers: Iterable[Tensor], lr: float, weight_decay: float
    ) -> Optimizer:
        """Build what takes the client's own steps; x is all of the model's weights."""

    @abstractmethod
    def vector(self, x: Tensor, buffers: Iterable[Tensor]) -> Optimizer:
        """Build what leaves x - d in one step."""

    def __str__(self) -> str:
        """Spell it as `parse_optimizer` reads it."""
        return spell(self, {**_OPTIMIZERS, **_SCHEDULES})


@dataclass(frozen=True)
class Mu2(Optimization):
    """Double momentum, μ²-SGD (Dahan & Levy, ICML 2024).

    Parameters
    ----------
    schedule : Schedule (default: Fixed())
        α, β and γ. On the server α and γ count its rounds, β the client's own.
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
        self, x: Tensor, buffers: Iterable[Tensor], lr: float, weight_decay: float
    ) -> Optimizer:
        """Build it with its iterate and its average on the client."""
        return Mu2SGD(
            [x],
            lr,
            self.schedule,
            weight_decay=weight_decay,
            radius=self.radius,
            buffers=buffers,
        )

    def vector(self, x: Tensor, buffers: Iterable[Tensor]) -> Optimizer:
        """Build its corrected momentum, at the client's own last query point."""
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
        self, x: Tensor, buffers: Iterable[Tensor], lr: float, weight_decay: float
    ) -> Optimizer:
        """Build PyTorch's SGD, damped."""
        return SGD(
            [x],
            lr,
            momentum=self.beta,
            dampening=self.beta,
            weight_decay=weight_decay,
        )

    def vector(self, x: Tensor, buffers: Iterable[Tensor]) -> Optimizer:
        """Build the same with steps of size 1; the server decays the weights."""
        return self.local(x, buffers, 1.0, weight_decay=0.0)


@dataclass(frozen=True)
class Plain(Optimization):
    """SGD: the vector is the gradient.

    Examples
    --------
    >>> parse_optimizer("sgd")
    Plain()
    """

    def local(
        self, x: Tensor, buffers: Iterable[Tensor], lr: float, weight_decay: float
    ) -> Optimizer:
        """Build PyTorch's SGD."""
        return SGD([x], lr, weight_decay=weight_decay)

    def vector(self, x: Tensor, buffers: Iterable[Tensor]) -> Optimizer:
        """Build the same with steps of size 1; the server decays the weights."""
        return self.local(x, buffers, 1.0, weight_decay=0.0)


_OPTIMIZERS: dict[str, type] = {"mu2": Mu2, "momentum": Momentum, "sgd": Plain}
_SCHEDULES: dict[str, type] = {"paper": Paper, "fixed": Fixed, "floored": Floored}


def parse_optimizer(text: str) -> Optimization:
    """Build what a run-config spells: `mu2(floored)`, `momentum(beta=0.99)`, `sgd`.

    Raises
    ------
    ValueError
        If the text spells none.
    """
    if text.partition("(")[0].strip() not in _OPTIMIZERS:
        raise parameter_error("optimizer", f"one of {', '.join(_OPTIMIZERS)}", text)
    return cast(Optimization, parse(text, {**_OPTIMIZERS, **_SCHEDULES}, "optimizer"))
