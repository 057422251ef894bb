"""SGD with momentum for one vector, and the interface of all optimizers of the app."""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flwr_ctma.optim.state import HasState

__all__ = ["Optimizer", "VectorSGD"]


class Optimizer(HasState, Protocol):
    """An optimizer with a state, which steps with a closure."""

    def step(self, closure: Callable[[], Any]) -> Any:
        """Compute the gradient, take a step, and return the loss."""


class VectorSGD:
    """SGD with damped momentum for one vector: m ← β m + (1 - β) g.

    It equals `torch.optim.SGD` with `momentum=β` and `dampening=β`. torch's optimizers
    import its compiler, which takes longer than many a simulation.

    Parameters
    ----------
    x : Tensor
        The vector.
    lr : float
        Learning rate.
    beta : float (default: 0.0)
        β; with 0 the optimizer has no state.
    weight_decay : float (default: 0.0)
        λ: λx is added to the gradient.

    Examples
    --------
    >>> x = torch.tensor([2.0])
    >>> x.grad = torch.tensor([1.0])
    >>> VectorSGD(x, lr=0.5).step(lambda: 0.0), x
    (0.0, tensor([1.5000]))
    """

    def __init__(
        self, x: Tensor, lr: float, beta: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self.param_groups = [{"params": [x]}]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._x, self._lr, self._beta, self._weight_decay = x, lr, beta, weight_decay

    def step(self, closure: Callable[[], Any]) -> Any:
        """Call the closure, which sets the gradient, and take a step."""
        loss, x = closure(), self._x
        with torch.no_grad():
            direction = cast(Tensor, x.grad)
            if self._weight_decay:
                direction = direction.add(x, alpha=self._weight_decay)
            if self._beta and x in self.state:
                momentum = self.state[x]["momentum"]
                momentum.mul_(self._beta).add_(direction, alpha=1 - self._beta)
                direction = momentum
            elif self._beta:
                self.state[x] = {"momentum": direction.clone()}
            x.sub_(direction, alpha=self._lr)
        return loss
