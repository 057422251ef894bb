"""Double-momentum SGD as a torch optimizer.

Distributed momentum (RESAM), m_t = β m_{t-1} + (1 - β) g_t, needs no optimizer of its
own: it is `torch.optim.SGD(params, lr, momentum=β, dampening=β)`, which starts from
m_1 = g_1. The paper starts from m_0 = 0, which makes the first steps smaller.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flwr_ctma.errors import parameter_error
from flwr_ctma.optim.schedules import Fixed, Schedule, parse_schedule
from flwr_ctma.optim.state import load_state_record, state_record

__all__ = ["Mu2SGD", "load_state_record", "state_record"]

_Buffers = Iterable[Tensor] | Callable[[], Iterable[Tensor]]


class Mu2SGD(Optimizer):
    r"""SGD with double momentum: corrected gradients at averaged query points.

    Step t evaluates one batch z at the query point x_t and at the previous one::

        g = ∇f(x_t; z),  g̃ = ∇f(x_{t-1}; z)
        d_t     = g + (1 - β_t) (d_{t-1} - g̃)
        w_{t+1} = Π(w_t - η α_t (d_t + λ x_t))
        x_{t+1} = x_t + γ_t (w_{t+1} - x_t)

    The parameters are x. In the first step, and with β_t = 1, one gradient suffices.

    Parameters
    ----------
    params : Iterable
        Parameters, or groups of parameters with an `lr` and a `weight_decay` each.
    lr : float
        Learning rate η.
    schedule : Schedule | str (default: Fixed())
        α, β and γ of every step, or their spelling: `"paper"`,
        `"fixed(storm-beta=0.25, gamma=0.1)"`, `"floored"`. This β weighs the *new*
        gradient; the β of heavy-ball momentum weighs the old vector.
    weight_decay : float (default: 0.0)
        λ. Adding λx to both gradients has the same effect.
    clip : float | None (default: None)
        Largest norm of a gradient over all parameters. g and g̃ are clipped
        separately, as in the authors' code, where the norm is 2.
    radius : float (default: infinity)
        Π projects on the ball of this radius around the origin.
    buffers : Iterable[Tensor] | Callable (default: ())
        Tensors that a forward pass changes: `model.buffers` for a model with
        BatchNorm. Running statistics then see the evaluations at x_t only. Pass the
        method `model.buffers`, not its result, if the model is moved or cast later.

    Raises
    ------
    ValueError
        If a number is out of range, or a group has a setting of the whole optimizer; if
        `step` has no closure, the closure does not call `backward`, or a gradient is
        sparse; if the model has been moved or cast and `buffers` were given as tensors.

    Notes
    -----
    Both evaluations see the same random numbers of torch, so dropout drops the same
    units. They must see the same batch: draw the batch outside the closure, and compute
    the loss and its gradient inside.

    The state holds w as its lead w - x. When a server replaces x, w moves along, and d
    is corrected at the point where this client computed d.

    A parameter without a gradient (frozen, or in a branch that the batch does not use)
    does not move. When it has a gradient again, its momentum restarts from that
    gradient; w, α and γ continue. The other parameters are corrected at the previous
    values of *all* parameters that have been trained so far.

    - Learning-rate schedulers of torch work.
    - `torch.amp.autocast` with bfloat16 works. `GradScaler` is refused: it unscales
      gradients before `step`, which computes them.
    - `accelerate` works without gradient accumulation and without float16: call
      `accelerator.backward(loss)` in the closure.
    - Opacus is not supported: its optimizer steps without a closure, which is refused.

    In one process, with fresh samples and `Paper()`, this is the method of the paper.
    No theory of the papers covers K local steps between aggregations with a model
    update as the reply. `Unaveraged(schedule)` with `lr=1` and one step returns the
    model x_t - d_t: the client's half of the exact method, for a server that runs
    `AnyTimeSGD`.

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

    # GradScaler then calls `step` at once, and `step` can refuse it.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        schedule: Schedule | str = Fixed(),  # noqa: B008, a frozen value
        *,
        weight_decay: float = 0.0,
        clip: float | None = None,
        radius: float = inf,
        buffers: _Buffers = (),
    ) -> None:
        if not 0 < lr < inf:
            raise parameter_error("lr", "positive and finite", lr)
        if not 0 <= weight_decay < inf:
            raise parameter_error("weight_decay", "at least 0 and finite", weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._configure(schedule, clip, radius)
        self.buffers = buffers if callable(buffers) else tuple(buffers)
        # Moving or casting a model replaces its buffers, but not its parameters.
        self._placed_at_start = {x: _place(x) for x in self._parameters()}
        self._left_gradients: dict[Tensor, tuple[int, int]] = {}

    def _configure(
        self, schedule: Schedule | str, clip: float | None, radius: float
    ) -> None:
        if clip is not None and not clip > 0:
            raise parameter_error("clip", "positive or None", clip)
        if not radius > 0:
            raise parameter_error("radius", "positive", radius)
        self.schedule = parse_schedule(schedule)
        self.clip = clip
        self.radius = radius

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with an `lr` and a `weight_decay` of their own."""
        for name in ("lr", "weight_decay"):
            value = param_group.get(name, 0.0)
            if not 0 <= value < inf:
                raise parameter_error(name, "at least 0 and finite", value)
        for name in _NOT_BY_GROUP & param_group.keys():
            raise parameter_error(
                name,
                "no setting of a group",
                param_group[name],
                "Groups differ in `lr` and `weight_decay` alone.",
            )
        # Without the decorator that imports torch's compiler, which takes longer than
        # many a simulation.
        add = torch.optim.Optimizer.add_param_group
        getattr(add, "__wrapped__", add)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the groups, and schedule, clip and radius.

        The schedule is its spelling, or the object itself if it has no spelling.
        """
        schedule: Schedule | str = str(self.schedule)
        try:
            parse_schedule(schedule)
        except ValueError:  # a class of the user's own
            schedule = self.schedule
        settings = {"schedule": schedule, "clip": self.clip, "radius": self.radius}
        return {**super().state_dict(), "settings": settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, schedule, clip and radius included."""
        if "settings" not in state_dict:
            raise parameter_error(
                "state_dict", f"that of a {type(self).__name__}", list(state_dict)
            )
        super().load_state_dict(state_dict)
        self._configure(**state_dict["settings"])
        # torch casts all but `step` to the dtype of the parameter.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for index, x in zip(saved, self._parameters(), strict=True):
            if index in state_dict["state"]:
                count = state_dict["state"][index]["momentum_step"]
                self.state[x]["momentum_step"] = count.clone()

    def __getstate__(self) -> dict[str, Any]:
        """Return all that a copy needs; torch's own keeps state and groups alone."""
        own = ("schedule", "clip", "radius", "buffers", "_placed_at_start")
        kept = {name: getattr(self, name) for name in own}
        return {**super().__getstate__(), **kept, "_left_gradients": {}}

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
        if hasattr(self, "found_inf"):  # set by GradScaler for the time of the call
            raise parameter_error(
                "optimizer",
                "stepped without a GradScaler",
                type(self).__name__,
                "Use `torch.autocast` with bfloat16, which needs none.",
            )
        self._check_buffers()
        self._move_state()
        computed_before = self._has_foreign_gradients()
        old = self._gradients_at_last_points(closure)
        loss, new = self._gradients(closure)
        if not new and (computed_before or _leads_to(self._parameters(), loss)):
            raise parameter_error(
                "closure",
                "a function that computes the loss and calls `backward`",
                closure,
                "Gradients from before the step are not used: the batch is evaluated "
                "at two points.",
            )
        moved = {}
        for group in self.param_groups:
            for x in group["params"]:
                state = self.state.get(x)
                if x not in new:
                    if state:
                        state["point"].copy_(x)
                        state["momentum_step"].zero_()
                    continue
                if not state:
                    state = self.state[x] = _start(x)
                momentum, lead = state["momentum"], state["lead"]
                if x in old:
                    beta = self._next_beta(state)
                    momentum.sub_(old[x]).mul_(1 - beta).add_(new[x])
                else:
                    momentum.copy_(new[x])
                    if self._needs_correction(state):  # no gradient at the last point
                        state["momentum_step"].zero_()
                state["momentum_step"] += 1
                state["step"] += 1
                moved[x] = weights = self.schedule(int(state["step"]))
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
        self._left_gradients = {x: _version(gradient) for x, gradient in new.items()}
        return loss

    def _parameters(self) -> list[Tensor]:
        return [x for group in self.param_groups for x in group["params"]]

    def _next_beta(self, state: Mapping[str, Tensor]) -> float:
        return self.schedule(int(state["momentum_step"]) + 1).storm_beta

    def _needs_correction(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the next momentum keeps a part of the last one."""
        return (
            bool(state) and bool(state["momentum_step"]) and self._next_beta(state) < 1
        )

    def _gradients_at_last_points(
        self, closure: Callable[[], Any]
    ) -> dict[Tensor, Tensor]:
        """Return gradients at x_{t-1} of the parameters whose momentum needs them."""
        needed = [x for x, state in self.state.items() if self._needs_correction(state)]
        if not needed:
            return {}
        # All parameters go back: also one without a gradient now, which others saw.
        points = {x: state["point"] for x, state in self.state.items() if state}
        buffers = self.buffers() if callable(self.buffers) else self.buffers
        with _elsewhere(points, buffers):
            _, gradients = self._gradients(closure)
        return {x: gradients[x] for x in needed if x in gradients}

    def _gradients(
        self, closure: Callable[[], Any]
    ) -> tuple[Any, dict[Tensor, Tensor]]:
        """Return the loss and the clipped gradients, which the optimizer may change."""
        parameters = self._parameters()
        for x in parameters:
            x.grad = None
        with torch.enable_grad():
            loss = closure()
        gradients = {x: x.grad for x in parameters if x.grad is not None}
        for gradient in gradients.values():
            if gradient.layout is not torch.strided:
                raise parameter_error(
                    "gradient",
                    "dense",
                    gradient.layout,
                    "Construct embeddings with `sparse=False`.",
                )
        if self.clip is not None and gradients:
            shrink = (self.clip / _norm(gradients.values())).clamp(max=1)
            for gradient in gradients.values():
                gradient.mul_(shrink.to(gradient.device))
        return loss, gradients

    def _project(self, parameters: Collection[Tensor]) -> None:
        norm = _norm(x + self.state[x]["lead"] for x in parameters)
        shrink = (self.radius / norm).clamp(max=1)
        for x in parameters:
            own = shrink.to(x.device)
            # Π(x + lead) - x, which equals the lead bit for bit where nothing shrinks.
            self.state[x]["lead"].mul_(own).sub_((1 - own) * x)

    def _has_foreign_gradients(self) -> bool:
        """Return whether somebody computed gradients since the last step."""
        return any(
            x.grad is not None and _version(x.grad) != self._left_gradients.get(x)
            for x in self._parameters()
        )

    def _check_buffers(self) -> None:
        if callable(self.buffers) or not self.buffers:
            return
        for x, place in self._placed_at_start.items():
            if _place(x) != place:
                raise parameter_error(
                    "buffers",
                    "a function, such as `model.buffers`, if the model moves",
                    f"tensors from when the model was on {place[0]} in {place[1]}",
                )

    def _move_state(self) -> None:
        """Let the state follow parameters that were moved or cast."""
        for x, state in self.state.items():
            for name in _VECTORS if state else ():
                if _place(state[name]) != _place(x):
                    state[name] = state[name].to(x)


_VECTORS = ("momentum", "lead", "point")
# Settings of the whole optimizer, and of other optimizers.
_NOT_BY_GROUP = frozenset(
    {"schedule", "clip", "radius", "buffers"}
    | {"maximize", "momentum", "dampening", "nesterov", "betas"}
)


def _start(x: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.tensor(0),  # t of α and γ: steps with a gradient
        "momentum_step": torch.tensor(0),  # t of β: the last of them without a gap
        "momentum": torch.zeros_like(x),  # d
        "lead": torch.zeros_like(x),  # w - x
        "point": torch.zeros_like(x),  # the query point of the last step
    }


@contextmanager
def _elsewhere(
    points: Mapping[Tensor, Tensor], buffers: Iterable[Tensor]
) -> Iterator[None]:
    """Visit other points; then restore parameters, buffers and random numbers."""
    changing = [*points, *buffers]
    kept = [tensor.clone() for tensor in changing]
    with ExitStack() as stack:
        for kind in {x.device.type for x in points} | {"cpu"}:
            devices = {x.device for x in points if x.device.type == kind != "cpu"}
            fork = torch.random.fork_rng(
                sorted(devices, key=str),
                device_type="cuda" if kind == "cpu" else kind,
            )
            stack.enter_context(fork)
        try:
            for x, point in points.items():
                x.copy_(point)
            yield
        finally:
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)


def _leads_to(parameters: Iterable[Tensor], loss: Any) -> bool:
    """Return whether a loss was computed from one of the parameters."""
    wanted = {id(x) for x in parameters}
    nodes, seen = [getattr(loss, "grad_fn", None)], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        nodes += [before for before, _ in node.next_functions]
    return False


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector."""
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    home = norms[0].device
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(home) for n in norms]))
    return total


def _place(x: Tensor) -> tuple[torch.device, torch.dtype]:
    return x.device, x.dtype


def _version(gradient: Tensor) -> tuple[int, int]:
    return id(gradient), gradient._version
