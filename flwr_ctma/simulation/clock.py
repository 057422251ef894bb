"""Clients that take their time, on a clock that takes none."""

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

# Seconds that pass when a strategy asks in vain.
_TICK = 1.0


class Durations(ABC):
    """How long a node takes to answer, in seconds of the virtual clock."""

    @abstractmethod
    def __call__(self, node: int, rng: np.random.Generator) -> float:
        """Give the duration of the next answer of node 0, 1, and so on."""


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
        λ_i of the first nodes, in place of (i + 1)^power: a flood, say.

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
    """The same duration for every answer of a node: one trace, or a straggler.

    Parameters
    ----------
    seconds : tuple of float
        One for each node.

    Raises
    ------
    ValueError
        For a time that is negative or not finite; when a node is asked that has none.

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
        """Give the node's duration."""
        if node >= len(self.seconds):
            raise parameter_error(
                "seconds", f"at least {node + 1} numbers", self.seconds
            )
        return self.seconds[node]


class ArrivalGrid(InProcessGrid):
    """Flower's Grid in one process, whose answers arrive one by one, in virtual time.

    A message is answered when its node's time is over: `pull_messages` moves the clock
    to the next arrival among the messages it is asked for and returns that one alone;
    `send_and_receive` returns when all have answered, or at its timeout, and what is
    not answered then never is.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_nodes : int
        How many nodes there are, each its own partition.
    durations : Durations
        How long each takes.
    run_config : UserConfig | None (default: None)
        What the clients find in `context.run_config`.
    seed : int (default: 0)
        Of the durations.

    Attributes
    ----------
    now : float
        Seconds on the virtual clock.

    Raises
    ------
    ValueError
        If there is no node, or a message goes to a node that does not exist.

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
        """Seconds on the virtual clock."""
        return self.now

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to their nodes, to be answered in time."""
        pushed = []
        for message in messages:
            key = self._number(message)
            node = self._index[message.metadata.dst_node_id]
            due = self.now + self._durations(node, self._rng)
            self._waiting[key] = (due, message)
            pushed.append(key)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Wait for the next answer among these, and return it."""
        asked = [key for key in message_ids if key in self._waiting]
        if not asked:
            self.now += _TICK
            return []
        return self._arrive(min(asked, key=lambda key: self._waiting[key][0]))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Wait for all answers, at most for the timeout."""
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
        """Give what a resumed run needs: clock, chance, and what is on its way."""
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
        """Go on from what `state_dict` gave: what was on its way still is."""
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
