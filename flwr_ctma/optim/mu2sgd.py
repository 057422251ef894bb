"""Double-momentum SGD as a torch optimizer.

Distributed momentum (RESAM), m_t = β m_{t-1} + (1 - β) g_t, needs no optimizer of its
own: it is `torch.optim.SGD(params, lr, momentum=β, dampening=β)`, which starts from
m_1 = g_1, where the paper's m_0 = 0 makes the first steps smaller.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flwr_ctma.errors import parameter_error
from flwr_ctma.optim.schedules import Fixed, Schedule, parse_schedule
from flwr_ctma.optim.state import load_state_record, state_record

__all__ = ["Mu2SGD", "load_state_record", "state_record"]


class Mu2SGD(Optimizer):
    r"""SGD with double momentum: corrected gradients at averaged query points.

    Step t evaluates one batch z at the query point x_t and at the one before::

        g = ∇f(x_t; z),  g̃ = ∇f(x_{t-1}; z)
        d_t     = g + (1 - β_t) (d_{t-1} - g̃)
        w_{t+1} = Π(w_t - η α_t (d_t + λ x_t))
        x_{t+1} = x_t + γ_t (w_{t+1} - x_t)

    The parameters are x. In the first step, and with β_t = 1, one gradient suffices.

    Parameters
    ----------
    params : Iterable
        Parameters, or groups of them with an `lr` and a `weight_decay` of their own.
    lr : float
        Learning rate η.
    schedule : Schedule | str (default: Fixed())
        α, β and γ of every step, or their spelling: `"paper"`,
        `"fixed(storm-beta=0.25, gamma=0.1)"`, `"floored"`. This β weighs the *new*
        gradient; it is not heavy-ball's.
    weight_decay : float (default: 0.0)
        λ. Adding λx to both gradients comes to the same.
    clip : float | None (default: None)
        Largest norm of a gradient, all parameters together; g and g̃ are clipped each
        on its own, as in the authors' code, where it is 2.
    radius : float (default: infinity)
        Π projects on the ball of this radius around the origin.
    buffers : Iterable[Tensor] (default: ())
        What a forward pass changes besides gradients: `model.buffers()` for a model
        with BatchNorm. Running statistics are those of the evaluations at x_t alone.

    Raises
    ------
    ValueError
        If a number is out of range, or `step` has no closure.

    Notes
    -----
    Both evaluations see the same random numbers of torch, so dropout drops the same
    units. They must see the same batch: draw it outside of the closure.

    What is kept of w is its lead w - x. So when a server replaces x, w moves along, and
    d is corrected at the point where this client took it.

    In one process, with fresh samples and `Paper()`, this is the method of the paper.
    As K local steps between aggregations, with an update of the model as the reply, no
    theory of the papers covers it. `Unaveraged(schedule)` with `lr=1` and one step
    gives the model x_t - d_t: the client's half of the exact method, for a server that
    runs `AnyTimeSGD`.

    References
    ----------
    Dahan & Levy, "Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous
    Training", ICML 2024 (arXiv 2405.14759).

    Examples
    --------
    >>> x = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = Mu2SGD([x], lr=0.1, schedule="fixed(gamma=0.5)")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (x**2).sum()
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(50):
    ...     loss = optimizer.step(closure)
    >>> bool(loss < 1e-3)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        schedule: Schedule | str = Fixed(),  # noqa: B008, a frozen value
        *,
        weight_decay: float = 0.0,
        clip: float | None = None,
        radius: float = inf,
        buffers: Iterable[Tensor] = (),
    ) -> None:
        if not 0 < lr < inf:
            raise parameter_error("lr", "positive and finite", lr)
        if not 0 <= weight_decay < inf:
            raise parameter_error("weight_decay", "at least 0 and finite", weight_decay)
        if clip is not None and not clip > 0:
            raise parameter_error("clip", "positive or None", clip)
        if not radius > 0:
            raise parameter_error("radius", "positive", radius)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.schedule = parse_schedule(schedule)
        self.clip = clip
        self.radius = radius
        self.buffers = tuple(buffers)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the batch at both points, and go to the next query point.

        Parameters
        ----------
        closure : Callable
            Clears the gradients, computes the loss of the batch, calls `backward` on it
            and returns it.

        Returns
        -------
        Any
            The loss at the query point x_t.
        """
        if closure is None:
            raise parameter_error(
                "closure", "a function that evaluates the batch", closure
            )
        old = self._gradients_at_last_points(closure)
        loss, new = self._gradients(closure)
        moved = {}
        for group in self.param_groups:
            for x in group["params"]:
                if x not in new:
                    continue
                state = self.state[x] = self.state[x] or _start(x)
                state["step"] += 1
                moved[x] = weights = self.schedule(int(state["step"]))
                momentum, lead = state["momentum"], state["lead"]
                if x in old:
                    momentum.sub_(old[x]).mul_(1 - weights.storm_beta).add_(new[x])
                else:
                    momentum.copy_(new[x])
                eta = group["lr"] * weights.alpha
                lead.sub_(momentum, alpha=eta)
                lead.sub_(x, alpha=eta * group["weight_decay"])
        if moved and self.radius < inf:
            self._project(moved)
        for x, weights in moved.items():
            state = self.state[x]
            state["point"].copy_(x)
            x.add_(state["lead"], alpha=weights.gamma)
            state["lead"].mul_(1 - weights.gamma)
        return loss

    def _gradients_at_last_points(
        self, closure: Callable[[], Any]
    ) -> dict[Tensor, Tensor]:
        """Gradients that correct momentum; for none that its schedule forgets."""
        points = {
            x: state["point"]
            for x, state in self.state.items()
            if state and self.schedule(int(state["step"]) + 1).storm_beta < 1
        }
        if not points:
            return {}
        with _elsewhere(points, self.buffers):
            _, gradients = self._gradients(closure)
        return {x: gradients[x] for x in points if x in gradients}

    def _gradients(
        self, closure: Callable[[], Any]
    ) -> tuple[Any, dict[Tensor, Tensor]]:
        """Loss and clipped gradients, which are the optimizer's to keep."""
        parameters = [x for group in self.param_groups for x in group["params"]]
        for x in parameters:
            x.grad = None
        with torch.enable_grad():
            loss = closure()
        gradients = {x: x.grad for x in parameters if x.grad is not None}
        if self.clip is not None and gradients:
            shrink = (self.clip / _norm(gradients.values())).clamp(max=1)
            for gradient in gradients.values():
                gradient.mul_(shrink)
        return loss, gradients

    def _project(self, parameters: Collection[Tensor]) -> None:
        norm = _norm(x + self.state[x]["lead"] for x in parameters)
        shrink = (self.radius / norm).clamp(max=1)
        for x in parameters:
            # Π(x + lead) - x, which is the very lead where nothing shrinks.
            self.state[x]["lead"].mul_(shrink).sub_((1 - shrink) * x)


def _start(x: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.tensor(0),
        "momentum": torch.zeros_like(x),  # d
        "lead": torch.zeros_like(x),  # w - x
        "point": torch.zeros_like(x),  # the query point that d was corrected at
    }


@contextmanager
def _elsewhere(
    points: Mapping[Tensor, Tensor], buffers: Iterable[Tensor]
) -> Iterator[None]:
    """Visit other points: parameters, buffers and random numbers are put back."""
    changing = [*points, *buffers]
    kept = [tensor.clone() for tensor in changing]
    gpus = {x.device.index for x in points if x.is_cuda}
    with torch.random.fork_rng(devices=sorted(gpus)):
        try:
            for x, point in points.items():
                x.copy_(point)
            yield
        finally:
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm of all tensors as one vector."""
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
