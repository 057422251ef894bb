"""Slow and fast clients on a virtual clock, without waiting for them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, UserConfig
from flwr.clientapp import ClientApp

from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.grid import InProcessGrid, from_bytes, to_bytes

__all__ = ["ArrivalGrid", "Durations", "FixedDurations", "Proportional"]

# Seconds that pass where there is no reply to pull.
_TICK = 1.0


class Durations(ABC):
    """The time that nodes take to answer, in seconds of the virtual clock."""

    @abstractmethod
    def __call__(self, node: int, rng: np.random.Generator) -> float:
        """Return the duration of the next answer of a node: 0, 1, and so on."""


@dataclass(frozen=True)
class Proportional(Durations):
    """Arrivals in proportion to the nodes' rates.

    The next arrival is that of node i, counted from 0, with probability::

        λ_i / Σ_j λ_j,    λ_i = (i + 1)^power

    Times are exponential, with mean 1 / λ_i. Power 0 is uniform.

    Parameters
    ----------
    power : float (default: 1.0)
        1 and 2 are the settings of the paper.
    rates : tuple of float (default: ())
        λ_i of the first nodes, in place of (i + 1)^power, such as for a flood.

    Raises
    ------
    ValueError
        For a power that is not finite, or a rate that is not above 0 and finite.

    References
    ----------
    Dahan and Levy, "Weight for Robustness", NeurIPS 2024 (arXiv 2501.09621).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> slow, fast = (Proportional(rates=(0.1,))(node, rng) for node in (0, 9))
    >>> slow > fast
    True
    """

    power: float = 1.0
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.power):
            raise parameter_error("power", "finite", self.power)
        if not all(0 < rate < math.inf for rate in self.rates):
            raise parameter_error("rates", "above 0, and finite", self.rates)

    def __call__(self, node: int, rng: np.random.Generator) -> float:
        """Draw a duration."""
        rate = self.rates[node] if node < len(self.rates) else (node + 1) ** self.power
        return float(rng.exponential(1 / rate))


@dataclass(frozen=True)
class FixedDurations(Durations):
    """The same duration for every answer of a node, such as a straggler's.

    Parameters
    ----------
    seconds : tuple of float
        One for each node.

    Raises
    ------
    ValueError
        If a time is negative or not finite; in a call, for a node without a time.

    Examples
    --------
    >>> FixedDurations((1.0, 1.0, 9.5))(2, np.random.default_rng())
    9.5
    """

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 <= second < math.inf for second in self.seconds):
            raise parameter_error("seconds", "at least 0, and finite", self.seconds)

    def __call__(self, node: int, rng: np.random.Generator) -> float:
        """Return the duration of the node."""
        if node >= len(self.seconds):
            raise parameter_error(
                "seconds", f"at least {node + 1} numbers", self.seconds
            )
        return self.seconds[node]


class ArrivalGrid(InProcessGrid):
    """A Grid in one process whose replies arrive one by one, in virtual time.

    A node answers when its duration is over. `pull_messages` moves the clock to the
    next arrival among the given messages and returns this reply alone.
    `send_and_receive` returns when all nodes have answered, or at its timeout; later
    replies are dropped.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_nodes : int
        The number of nodes, each with its own partition.
    durations : Durations
        The time that each node takes.
    run_config : UserConfig | None (default: None)
        The `context.run_config` of the clients.
    seed : int (default: 0)
        Seed of the durations.

    Attributes
    ----------
    now : float
        Seconds on the virtual clock.

    Raises
    ------
    ValueError
        If num_nodes is below 1, or a message goes to an unknown node.

    Examples
    --------
    >>> from flwr.app import RecordDict
    >>> app = ClientApp()
    >>> @app.query()
    ... def answer(message, context):
    ...     return Message(RecordDict(), reply_to=message)
    >>> grid = ArrivalGrid(app, 2, FixedDurations((3.0, 1.0)))
    >>> asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    >>> keys = grid.push_messages(asked)
    >>> [reply.metadata.src_node_id for reply in grid.pull_messages(keys)], grid.now
    ([3], 1.0)
    >>> [reply.metadata.src_node_id for reply in grid.pull_messages(keys)], grid.now
    ([2], 3.0)
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        durations: Durations,
        run_config: UserConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(client_app, num_nodes, run_config)
        self.now = 0.0
        self._durations = durations
        self._rng = np.random.default_rng(seed)
        self._index = {node: i for i, node in enumerate(self._contexts)}
        self._waiting: dict[str, tuple[float, Message]] = {}

    def clock(self) -> float:
        """Return the seconds on the virtual clock."""
        return self.now

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to their nodes, which answer after their durations."""
        pushed = []
        for message in messages:
            key = self._number(message)
            node = self._index[message.metadata.dst_node_id]
            due = self.now + self._durations(node, self._rng)
            self._waiting[key] = (due, message)
            pushed.append(key)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Move the clock to the next reply to these messages, and return it."""
        asked = [key for key in message_ids if key in self._waiting]
        if not asked:
            self.now += _TICK
            return []
        return self._arrive(min(asked, key=lambda key: self._waiting[key][0]))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return all replies that arrive before the timeout."""
        start, waiting = self.now, set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            key = min(waiting, key=lambda key: self._waiting[key][0])
            if timeout is not None and self._waiting[key][0] > start + timeout:
                self.now = start + timeout
                break
            waiting.remove(key)
            replies += self._arrive(key)
        for key in waiting:
            del self._waiting[key]
        return replies

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, unanswered messages included."""
        return {
            **super().state_dict(),
            "now": self.now,
            "rng": self._rng.bit_generator.state,
            "waiting": {
                key: (due, to_bytes(message))
                for key, (due, message) in self._waiting.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, unanswered messages included."""
        super().load_state_dict(state)
        self.now = state["now"]
        self._rng.bit_generator.state = state["rng"]
        waiting = state["waiting"].items()
        self._waiting = {key: (due, from_bytes(data)) for key, (due, data) in waiting}

    def _arrive(self, key: str) -> list[Message]:
        due, message = self._waiting.pop(key)
        self.now = max(self.now, due)
        self._keep(key, self._answer(message))
        return super().pull_messages([key])
