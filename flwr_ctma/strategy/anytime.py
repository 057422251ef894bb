"""The server side of μ²-SGD: a step, and AnyTime averaging of the iterates."""

from collections.abc import Iterable, Mapping, Sequence
from logging import INFO
from math import hypot, inf
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from flwr_ctma.compat import log, make_record
from flwr_ctma.engine.threads import one_blas_thread
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import numbers, records_of, to_array
from flwr_ctma.messages.schema import BUFFER_KEYS
from flwr_ctma.optim.schedules import Fixed, Schedule, parse_schedule

__all__ = ["AnyTimeSGD"]


class AnyTimeSGD(FedAvg):
    """Take a step along the clients' momenta, and send the average of the iterates.

    Round t sends the query point x_t. A client replies with the model x_t - d_t that
    carries its momentum d_t, so that rules, attacks and metrics see replies as usual.
    With x̂ the average of the replies, or the aggregate of `RobustStrategy`::

        w_{t+1} = Π(w_t - η α_t (x_t - x̂ + λ x_t))
        x_{t+1} = x_t + γ_t (w_{t+1} - x_t)

    Parameters
    ----------
    eta : float
        Learning rate η of the server.
    schedule : Schedule | str (default: Fixed())
        α and γ of every round, or the name: `"paper"`, `"fixed(gamma=0.1)"`,
        `"floored"`. Its β is for the clients, which count their own steps.
    weight_decay : float (default: 0.0)
        λ.
    radius : float (default: infinity)
        Π projects on the ball of this radius around the origin.
    **fedavg : Any
        Settings of FedAvg: sampling, and the names of records and keys.

    Raises
    ------
    ValueError
        If a number is out of range, the state to load is not of this strategy, or the
        model has other shapes than in the rounds before.

    Notes
    -----
    Clients that run one step of `Mu2SGD(lr=1, schedule=Unaveraged(schedule))` make this
    the exact method (Dahan & Levy, ICML 2024). With one step of
    `SGD(lr=1, momentum=β, dampening=β)` and `"fixed(gamma=1)"` it is RESAM
    (Farhadkhani et al., ICML 2022). With `eta=1` and `"fixed(gamma=1)"` it is FedAvg.

    x_t - (x_t - d_t) is d_t up to half a unit in the last place of x_t. In float32 that
    is no more than the rounding of a stored w_t, as long as η α_t is at most 1.

    A skipped round is no step. Running statistics and integers are not parameters: the
    average of the replies replaces them.

    Examples
    --------
    >>> strategy = AnyTimeSGD(0.1, "paper", min_available_nodes=17)
    >>> strategy.schedule
    Paper()
    """

    def __init__(
        self,
        eta: float,
        schedule: Schedule | str = Fixed(),  # noqa: B008, a frozen value
        *,
        weight_decay: float = 0.0,
        radius: float = inf,
        **fedavg: Any,
    ) -> None:
        if not 0 < eta < inf:
            raise parameter_error("eta", "positive and finite", eta)
        if not 0 <= weight_decay < inf:
            raise parameter_error("weight_decay", "at least 0 and finite", weight_decay)
        if not radius > 0:
            raise parameter_error("radius", "positive", radius)
        super().__init__(**fedavg)
        self.eta = eta
        self.schedule = parse_schedule(schedule)
        self.weight_decay = weight_decay
        self.radius = radius
        self._t = 0
        # w is kept as its lead over the query point, w - x.
        self._lead: dict[str, NDArray[Any]] = {}
        self._sent = ArrayRecord()

    def summary(self) -> None:
        """Log the settings, then those of FedAvg."""
        log(INFO, "\t├──> AnyTime SGD:")
        log(INFO, "\t│\t├── Learning rate: %g", self.eta)
        log(INFO, "\t│\t├── Schedule: %s", self.schedule)
        log(INFO, "\t│\t├── Weight decay: %g", self.weight_decay)
        log(INFO, "\t│\t└── Projection radius: %s", self.radius)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the query point, and remember it."""
        self._check_model(arrays)
        self._sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies, and take the step to the next query point."""
        replies = [*replies]
        average: ArrayRecord | None
        alone = _alone(replies)
        if alone:  # as from RobustStrategy: the average is this reply
            (name, average), content = alone, replies[0].content
            empty = RecordDict({**content, name: ArrayRecord()})
            _, metrics = super().aggregate_train(
                server_round, [Message(empty, reply_to=replies[0])]
            )
        else:
            average, metrics = super().aggregate_train(server_round, replies)
        return (None if average is None else self.step(self._sent, average)), metrics

    @one_blas_thread()
    def step(self, sent: ArrayRecord, average: ArrayRecord) -> ArrayRecord:
        """Return the query point x_{t+1}, given x_t and the average x̂ of the replies.

        Parameters
        ----------
        sent : ArrayRecord
            x_t.
        average : ArrayRecord
            x̂, of the same names and shapes.
        """
        self._check_model(sent)
        self._t += 1
        alpha, _, gamma = self.schedule(self._t)
        x, lead = {}, {}
        for name in (key for key in average if _is_parameter(key, sent)):
            x[name] = numbers(sent[name])
            dtype = np.result_type(x[name], np.float32)
            momentum = np.subtract(x[name], numbers(average[name]), dtype=dtype)
            momentum += self.weight_decay * x[name]
            lead[name] = self._lead.get(name, 0.0) - self.eta * alpha * momentum
        if self.radius < inf:
            lead = _projected(x, lead, self.radius)
        self._lead = {name: (1 - gamma) * value for name, value in lead.items()}
        moved = {
            name: to_array(np.asarray(x[name] + gamma * lead[name], x[name].dtype))
            for name in x
        }
        return make_record({**average, **moved})

    def _check_model(self, arrays: ArrayRecord) -> None:
        """Raise a ValueError if the lead is that of another model."""
        found = {k: numbers(a).shape for k, a in arrays.items() if k in self._lead}
        known = {name: lead.shape for name, lead in self._lead.items()}
        if found != known:
            name = next(k for k in known if found.get(k) != known[k])
            raise parameter_error(
                f"arrays[{name!r}]",
                f"of shape {known[name]}, as in the rounds before",
                found.get(name, "no such array"),
                "Make a new `AnyTimeSGD` for another model.",
            )

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the state of the optimiser: the count t and the lead w_t - x_t.

        Returns
        -------
        dict[str, NDArray]
            "t", and "lead." with the name of each parameter.
        """
        lead = {f"lead.{name}": value for name, value in self._lead.items()}
        return {"t": np.array(self._t), **lead}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the state that `state_dict` returned."""
        strange = [k for k in state if k != "t" and not k.startswith("lead.")]
        if "t" not in state or strange:
            raise parameter_error("state", "what `state_dict` gave", sorted(state))
        self._t = int(state["t"])
        self._lead = {k[5:]: value for k, value in state.items() if k != "t"}


def _alone(replies: Sequence[Message]) -> tuple[str, ArrayRecord] | None:
    """Return the arrays of the only reply, with their name; None if there are more."""
    if len(replies) != 1 or not replies[0].has_content():
        return None
    records = records_of(replies[0].content, ArrayRecord)
    return next(iter(records.items())) if len(records) == 1 else None


def _is_parameter(name: str, arrays: ArrayRecord) -> bool:
    floating = np.dtype(arrays[name].dtype).kind == "f"
    return floating and name.rpartition(".")[2] not in BUFFER_KEYS


def _projected(
    x: Mapping[str, NDArray[Any]], lead: Mapping[str, NDArray[Any]], radius: float
) -> dict[str, NDArray[Any]]:
    """Return Π(x + lead) - x, where all arrays together are one vector."""
    norm = hypot(*(float(np.linalg.norm(x[name] + lead[name])) for name in x))
    shrink = min(1.0, radius / norm) if norm > 0 else 1.0
    return {name: shrink * lead[name] - (1 - shrink) * x[name] for name in x}
