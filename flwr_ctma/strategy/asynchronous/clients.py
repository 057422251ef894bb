"""The latest update of every client, and how many of its updates count."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray

from flwr_ctma.aggregators import Aggregator, Budget, CwTM
from flwr_ctma.aggregators.base import Combination, Point
from flwr_ctma.engine.incremental import IncrementalStack
from flwr_ctma.engine.threads import one_blas_thread
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.schema import Reply, ReplySchema
from flwr_ctma.strategy.asynchronous.weighting import ClientWeighting, capped
from flwr_ctma.strategy.round.memory import clip_factors, share_of_noise, weigh_beside

__all__ = ["Client", "ClientUpdates"]

Float64 = NDArray[np.float64]


@dataclass
class Client:
    """What the server knows of a node, all of it counted by the server.

    Attributes
    ----------
    row : int
        The row of its latest update.
    asked : int
        Messages that it was sent.
    delivered : int
        Good replies.
    count : int
        Good replies that were counted.
    asked_at : int
        The server's step that the model of the latest reply is from.
    metrics : MetricRecord | None
        Metrics of the latest reply.
    """

    row: int
    asked: int = 0
    delivered: int = 0
    count: int = 0
    asked_at: int = 0
    metrics: MetricRecord | None = None


@dataclass
class ClientUpdates:
    """The latest update and the count of every client, and their weights.

    There are never more rows than nodes were connected at the same time: a node that
    has left keeps its row until a new node needs the room, and the first to leave is
    the first to be forgotten.

    Parameters
    ----------
    f : int | float
        A count: any f clients are held to the share. A share λ: of the updates, on
        trust.
    max_share : float | None
        The most that any f clients may hold; half-way from f/n to 1/2 if None.
    client_weighting : ClientWeighting
    memory : float (default: 0.0)
        β of the average of each client's updates that the rule sees as well; 0: none.

    Attributes
    ----------
    present : set of int
        Nodes that are connected; all others have no weight until they are back.
    clients : dict of Client by node
        All nodes that have a row, in the order of their rows.
    latest : dict of IncrementalStack by "rows", "buffers" and "past"
        Latest updates of the measured parameters, and of running statistics; averages
        of the former, with a memory.
    steps : int
        Steps of the server.
    share : float
        λ in the last step.

    Raises
    ------
    ValueError
        If f, max_share or client_weighting is of another type, or out of range.
    """

    f: int | float
    max_share: float | None
    client_weighting: ClientWeighting
    memory: float = 0.0
    present: set[int] = field(default_factory=set)
    clients: dict[int, Client] = field(default_factory=dict)
    latest: dict[str, IncrementalStack] = field(default_factory=dict)
    steps: int = 0
    share: float = 0.0
    _without_weight: Set[int] = frozenset()
    _most_present: int = 0
    _left: dict[int, None] = field(default_factory=dict)  # in the order of leaving

    def __post_init__(self) -> None:
        f, share = self.f, self.max_share
        counted = isinstance(f, Integral) and not isinstance(f, bool) and f >= 0
        if not counted and not (isinstance(f, float) and 0 <= f < 0.5):
            expected = "a count, or a share of updates in [0, 0.5)"
            raise parameter_error("num_malicious_nodes", expected, f)
        self.f = int(f) if counted else float(f)
        if not isinstance(self.client_weighting, ClientWeighting):
            raise parameter_error(
                "client_weighting",
                "a `ClientWeighting` or its name, such as `counts`",
                self.client_weighting,
            )
        if share is None:
            return
        if not counted:
            expected = "None where `num_malicious_nodes` is a share: that is on trust"
            raise parameter_error("max_share", expected, share)
        if (
            isinstance(share, bool)
            or not isinstance(share, Real)
            or not 0 <= share < 0.5
        ):
            remedy = "No rule holds against half of the weight."
            raise parameter_error("max_share", "in [0, 0.5)", share, remedy)

    def ask(self, node: int) -> int:
        """Note that a node is sent a message; return how many it has been sent."""
        client = self.clients.setdefault(node, Client(len(self.clients)))
        client.asked += 1
        return client.asked

    def replace(self, node: int, model: ReplySchema, step: int, reply: Reply) -> None:
        """Replace a client's latest update, which is its reply less the sent model."""
        client = self.clients[node]
        client.delivered += 1
        client.asked_at = step
        client.metrics = reply.metrics
        for name, positions in _parts(model).items():
            update = model.updates([reply], positions).combine(np.ones(1))
            self._enter(name, client, update)
            if name == "rows" and self.memory:
                self._enter("past", client, self._remembered(client, update))

    def check_resumed(self, model: ReplySchema) -> None:
        """Raise a ValueError if the latest updates have other layers than the model."""
        for name, latest in self.latest.items():
            positions = model.buffers if name == "buffers" else model.measured
            model.check_widths([layer.width for layer in latest.layers], positions)

    def _enter(self, name: str, client: Client, row: Sequence[NDArray[Any]]) -> None:
        if name not in self.latest:
            self.latest[name] = IncrementalStack(len(self.clients), row)
        self._grow()
        self.latest[name].replace(client.row, row)

    def _remembered(
        self, client: Client, update: Sequence[NDArray[Any]]
    ) -> Sequence[NDArray[Any]]:
        """Return the average of a client's updates with a new one, as in `NodeMemory`.

        A client's first update is its average, whatever its row was before.
        """
        if client.delivered == 1:
            return update
        step = (1 - self.memory) / (1 - self.memory**client.delivered)
        held = [layer.rows[client.row] for layer in self.latest["past"].layers]
        return [
            v + v.dtype.type(step) * (u - v) for v, u in zip(held, update, strict=True)
        ]

    def set_present(self, present: Set[int]) -> set[int]:
        """Note which nodes are connected; return those that are forgotten for good."""
        self.present = set(present)
        self._most_present = max(self._most_present, len(present))
        gone = [node for node in self.clients if node not in present]
        self._left = dict.fromkeys(
            [*(node for node in self._left if node in gone), *gone]
        )
        rows = len(self.clients.keys() | present)
        forgotten = list(self._left)[: max(rows - self._most_present, 0)]
        self.forget(forgotten)
        return set(forgotten)

    def to_exclude(self, nodes: Sequence[int], connected: Set[int]) -> set[int]:
        """Return the first of some nodes, f together at most.

        f is not lowered by that: more than 2f nodes are left.
        """
        n = len(connected)
        f = self.f if isinstance(self.f, int) else math.floor(self.f * n)
        here = [node for node in nodes if node in connected]
        return set(here[: max(min(f, n - 2 * f - 1), 0)])

    def forget(self, nodes: Collection[int]) -> None:
        """Drop all that is known of some nodes, with their rows."""
        kept = {n: client for n, client in self.clients.items() if n not in nodes}
        for node in nodes:
            self._left.pop(node, None)
        if len(kept) == len(self.clients):
            return
        self._grow()
        rows = [client.row for client in kept.values()]
        self.latest = self.latest if rows else {}
        for latest in self.latest.values():
            latest.keep(rows)
        for row, client in enumerate(kept.values()):
            client.row = row
        self.clients = kept

    def claims(self) -> list[MetricRecord]:
        """Return the latest metrics of every client that is connected."""
        clients = [c for node, c in self.clients.items() if node in self.present]
        return [c.metrics for c in clients if c.metrics is not None]

    def _grow(self) -> None:
        """Give every client a row."""
        for latest in self.latest.values():
            if len(self.clients) > latest.n:
                latest.grow(len(self.clients))

    def above_cap(self) -> set[int]:
        """Return the nodes whose next update would not be counted: they wait.

        Before so many nodes have delivered that the cap can be kept, one update of each
        is counted.
        """
        counts, _ = self._counts_and_ages()
        cut = self._cut(counts)
        full = counts > (0 if cut is None else cut)
        return {node for node, client in self.clients.items() if full[client.row]}

    def all_above_cap(self) -> bool:
        """Return whether no client that has delivered may work: others must deliver."""
        known = {node for node, client in self.clients.items() if client.count}
        return bool(known & self.present) and known & self.present <= self.above_cap()

    def count(self, node: int) -> bool:
        """Count an update, unless the client's count is above the cap already."""
        client = self.clients[node]
        counts, _ = self._counts_and_ages()
        cut = self._cut(counts)
        if client.count > (0 if cut is None else cut[client.row]):
            return False
        client.count += 1
        return True

    @one_blas_thread()
    def average(
        self, model: ReplySchema, rule: Aggregator
    ) -> dict[int, NDArray[Any]] | None:
        """Return the robust average, by positions in the model.

        None where f clients could hold more than their share of it.
        """
        budget = self._budget()
        if budget is None:
            return None
        average: dict[int, NDArray[Any]] = {}
        for name, positions in _parts(model).items():
            rows = Updates(self.latest[name])
            if name == "buffers":
                point = CwTM().solve(rows, budget)
            else:
                point = self._solve(rule, rows, budget)
                self._without_weight = self._nodes_without(point.weights())
            average.update(zip(positions, point.vector(rows.stack), strict=True))
        return average

    def _solve(self, rule: Aggregator, rows: Updates, budget: Budget) -> Point:
        """Let the rule weigh the latest updates, beside the past with a memory."""
        if not self.memory:
            return rule.solve(rows, budget)
        known = [client.delivered for client in self.clients.values() if client.count]
        scale = share_of_noise(self.memory, known)
        weights = weigh_beside(rule, Updates(self.latest["past"]), rows, scale, budget)
        return Combination(weights * clip_factors(rows, weights))

    def trimmed(self, nodes: Iterable[int]) -> list[int]:
        """Return those of some nodes whose updates had no weight in the last step.

        There are none where a rule works coordinate by coordinate.
        """
        return [node for node in nodes if node in self._without_weight]

    def _nodes_without(self, influence: Float64 | None) -> Set[int]:
        """Return the nodes without influence; none where it is not known."""
        if influence is None:
            return frozenset()
        return {n for n, client in self.clients.items() if influence[client.row] == 0}

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        clients = {
            node: {**vars(client), "metrics": client.metrics and dict(client.metrics)}
            for node, client in self.clients.items()
        }
        latest = {name: rows.state_dict() for name, rows in self.latest.items()}
        return {
            "clients": clients,
            "latest": latest,
            "steps": self.steps,
            "share": self.share,
            "most-present": self._most_present,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        ValueError
            If there is a memory and the state has none.
        """
        if self.memory and state["latest"] and "past" not in state["latest"]:
            raise parameter_error(
                "memory",
                "0, as in the run that is resumed",
                self.memory,
                "Averages of past updates were not kept: start in another folder.",
            )
        self.clients = {node: Client(**c) for node, c in state["clients"].items()}
        for client in self.clients.values():
            if client.metrics is not None:
                client.metrics = MetricRecord({**client.metrics})
        self.latest = {
            name: IncrementalStack.from_state(rows)
            for name, rows in state["latest"].items()
            if self.memory or name != "past"
        }
        self.steps = state["steps"]
        self.share = state["share"]
        self._most_present = state["most-present"]

    def why_no_step(self) -> str:
        """Return the reason for which no step may be taken yet."""
        known = sum(c.count > 0 and n in self.present for n, c in self.clients.items())
        return (
            f"{known} of {len(self.present)} nodes have delivered, {self.f} of them "
            f"may be malicious, and no {self.f} are to hold more than "
            f"{self._limit:.2f} of the weight"
        )

    def _budget(self) -> Budget | None:
        """Return the weights; None if any f rows would hold more than their share."""
        counts, ages = self._counts_and_ages()
        weights = np.where(counts > 0, self.client_weighting(counts, ages), 0.0)
        cut = self._cut(weights)
        if cut is None or not cut.any():
            return None
        if isinstance(self.f, int):
            if 2 * self.f >= len(self.present):
                return None
            self.share = float(np.sort(cut)[::-1][: self.f].sum() / cut.sum())
        else:
            self.share = self.f
        return Budget(len(cut), self.share, cut)

    def _cut(self, weights: Float64) -> Float64 | None:
        """Return the weights, cut at the cap; None where f allows no cap."""
        if isinstance(self.f, int):
            return capped(weights, self.f, self._limit)
        return weights

    @property
    def _limit(self) -> float:
        """Return λ, the largest share of f clients."""
        if self.max_share is not None:
            return self.max_share
        return (self.f / max(len(self.present), 1) + 0.5) / 2

    def _counts_and_ages(self) -> tuple[Float64, Float64]:
        """Return the counts and ages of the nodes that are connected, by row."""
        n = len(self.clients)
        counts, ages = np.zeros(n), np.zeros(n)
        for node, client in self.clients.items():
            if client.count and node in self.present:
                counts[client.row] = client.count
                ages[client.row] = self.steps - client.asked_at
        return counts, ages


def _parts(model: ReplySchema) -> dict[str, tuple[int, ...]]:
    """Return the positions of measured parameters, and of running statistics."""
    parts = {"rows": model.measured, "buffers": model.buffers}
    return {name: positions for name, positions in parts.items() if positions}
