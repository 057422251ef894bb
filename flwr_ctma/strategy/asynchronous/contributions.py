"""What every client has contributed: its latest update, and how many of them count."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray

from flwr_ctma.aggregators import Aggregator, Budget, CwTM
from flwr_ctma.engine.incremental import IncrementalStack
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.schema import Reply, ReplySchema
from flwr_ctma.strategy.asynchronous.weighting import ClientWeighting, capped

__all__ = ["Client", "Contributions"]

Float64 = NDArray[np.float64]


@dataclass
class Client:
    """What the server knows of a node, all of it counted by the server.

    Attributes
    ----------
    row : int
        Where its latest update is kept.
    asked : int
        Messages that it was sent.
    delivered : int
        Good replies.
    count : int
        Those of them that count.
    asked_at : int
        Step of the server that the latest reply's model is from.
    metrics : MetricRecord | None
        Of the latest reply.
    """

    row: int
    asked: int = 0
    delivered: int = 0
    count: int = 0
    asked_at: int = 0
    metrics: MetricRecord | None = None


@dataclass
class Contributions:
    """The latest update and the count of every client, and what these weigh.

    Parameters
    ----------
    f : int | float
        A count: any f clients are held to the share. A share λ: of the updates, on
        trust.
    max_share : float | None
        The most that any f clients may hold; half-way from f/n to 1/2 if None.
    weighing : Weighing

    Attributes
    ----------
    present : set of int
        Nodes that are connected; all others have no weight until they are back.
    clients : dict of Client by node
        Of all nodes that were ever asked, in the order of their rows.
    latest : dict of Latest by "rows" and "buffers"
        Latest updates of the parameters that are measured, and of running statistics.
    steps : int
        That the server has taken.
    share : float
        λ at the last step.
    """

    f: int | float
    max_share: float | None
    weighing: ClientWeighting
    present: set[int] = field(default_factory=set)
    clients: dict[int, Client] = field(default_factory=dict)
    latest: dict[str, IncrementalStack] = field(default_factory=dict)
    steps: int = 0
    share: float = 0.0
    _idle: Set[int] = frozenset()

    def __post_init__(self) -> None:
        counted = isinstance(self.f, int) and not isinstance(self.f, bool)
        shared = isinstance(self.f, float) and 0 <= self.f < 0.5
        if not (self.f >= 0 if counted else shared):
            expected = "a count, or a share of updates in [0, 0.5)"
            raise parameter_error("num_malicious_nodes", expected, self.f)
        if self.max_share is None:
            return
        if not counted:
            expected = "None where `num_malicious_nodes` is a share: that is on trust"
            raise parameter_error("max_share", expected, self.max_share)
        if not 0 <= self.max_share < 0.5:
            remedy = "No rule holds against half of the weight."
            raise parameter_error("max_share", "in [0, 0.5)", self.max_share, remedy)

    def ask(self, node: int) -> int:
        """Note that a node is sent a message; give how many it has been sent."""
        client = self.clients.setdefault(node, Client(len(self.clients)))
        client.asked += 1
        return client.asked

    def replace(self, node: int, model: ReplySchema, step: int, reply: Reply) -> None:
        """Put an update, reply less model that was sent, in the place of the last."""
        client = self.clients[node]
        client.delivered += 1
        client.asked_at = step
        client.metrics = reply.metrics
        for name, positions in _parts(model).items():
            update = model.updates([reply], positions).combine(np.ones(1))
            if name not in self.latest:
                self.latest[name] = IncrementalStack(len(self.clients), update)
            self._make_room()
            self.latest[name].replace(client.row, update)

    def forget_all_but(self, nodes: Set[int]) -> None:
        """Drop what was known of all other nodes, with their rows."""
        kept = {n: client for n, client in self.clients.items() if n in nodes}
        if len(kept) == len(self.clients):
            return
        self._make_room()
        rows = [client.row for client in kept.values()]
        self.latest = self.latest if rows else {}
        for latest in self.latest.values():
            latest.keep(rows)
        for row, client in enumerate(kept.values()):
            client.row = row
        self.clients = kept

    def _make_room(self) -> None:
        """Give every client a row."""
        for latest in self.latest.values():
            if len(self.clients) > latest.n:
                latest.grow(len(self.clients))

    def count(self, node: int) -> bool:
        """Count an update, unless the client's count is above the cap already."""
        client = self.clients[node]
        counts, _ = self._counts_and_ages()
        cut = self._cut(counts)
        if cut is None:  # too few have delivered: one of each counts, for later
            client.count = max(client.count, 1)
            return False
        if cut[client.row] < counts[client.row]:
            return False
        client.count += 1
        return True

    def average(
        self, model: ReplySchema, rule: Aggregator
    ) -> dict[int, NDArray[Any]] | None:
        """Give the robust average, by positions in the model.

        None if it is not safe: f clients could hold too much of it.
        """
        budget = self._budget()
        if budget is None:
            return None
        average: dict[int, NDArray[Any]] = {}
        for name, positions in _parts(model).items():
            rows = Updates(self.latest[name])
            point = (rule if name == "rows" else CwTM()).solve(rows, budget)
            if name == "rows":
                self._idle = self._without(point.weights())
            average.update(zip(positions, point.vector(rows.stack), strict=True))
        return average

    def trimmed(self, nodes: Iterable[int]) -> list[int]:
        """Give those of some nodes whose updates counted nothing at the last step.

        None of them where a rule works coordinate by coordinate.
        """
        return [node for node in nodes if node in self._idle]

    def _without(self, influence: Float64 | None) -> Set[int]:
        """Give the nodes that have no influence; it is None where it is not known."""
        if influence is None:
            return frozenset()
        return {n for n, client in self.clients.items() if influence[client.row] == 0}

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs, beside who is connected then."""
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.clients = {node: Client(**c) for node, c in state["clients"].items()}
        for client in self.clients.values():
            if client.metrics is not None:
                client.metrics = MetricRecord({**client.metrics})
        latest = state["latest"].items()
        self.latest = {name: IncrementalStack.from_state(rows) for name, rows in latest}
        self.steps = state["steps"]
        self.share = state["share"]

    def hindrance(self) -> str:
        """Say why no step may be taken yet."""
        known = sum(c.count > 0 and n in self.present for n, c in self.clients.items())
        return (
            f"{known} of {len(self.present)} nodes have delivered, {self.f} of them "
            f"may be malicious, and no {self.f} are to hold more than "
            f"{self._limit:.2f} of the weight"
        )

    def _budget(self) -> Budget | None:
        """Weigh the rows; None if any f of them would hold more than their share."""
        counts, ages = self._counts_and_ages()
        weights = np.where(counts > 0, self.weighing(counts, ages), 0.0)
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
        """Cut weights as f needs it; None if they cannot be."""
        if isinstance(self.f, int):
            return capped(weights, self.f, self._limit)
        return weights

    @property
    def _limit(self) -> float:
        """λ, the largest share of f clients."""
        if self.max_share is not None:
            return self.max_share
        return (self.f / max(len(self.present), 1) + 0.5) / 2

    def _counts_and_ages(self) -> tuple[Float64, Float64]:
        """What the server counted of the nodes that are connected, by row."""
        n = self.latest["rows"].n
        counts, ages = np.zeros(n), np.zeros(n)
        for node, client in self.clients.items():
            if client.count and node in self.present:
                counts[client.row] = client.count
                ages[client.row] = self.steps - client.asked_at
        return counts, ages


def _parts(model: ReplySchema) -> dict[str, tuple[int, ...]]:
    """Positions of what is aggregated by the rule, and of running statistics."""
    parts = {"rows": model.measured, "buffers": model.buffers}
    return {name: positions for name, positions in parts.items() if positions}
