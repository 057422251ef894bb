"""Nodes are judged by their past updates, and counted by their present ones.

Noise averages out in a memory; a lie that points one way in every round adds up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.aggregators import (
    CTMA,
    LASA,
    Aggregator,
    Budget,
    Bulyan,
    CwMed,
    CwTM,
    Hierarchical,
    Layerwise,
    MeaMed,
    MetaAggregator,
)
from flwr_ctma.aggregators.base import Combination
from flwr_ctma.engine import threads
from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = [
    "NodeMemory",
    "check_memory",
    "check_weighs_clients",
    "clip_factors",
    "share_of_noise",
    "solve_remembered",
    "weigh_beside",
    "weigh_nodes",
]

# Columns that are computed at a time.
_WIDTH = 2**16
# A present row is cut to so many median norms.
_CLIP = 2.0


@dataclass
class _Memory:
    """The average of a node's updates, and the number of them."""

    count: int
    rows: list[NDArray[Any]]


class NodeMemory:
    r"""An average of the updates of each node, which fades by β with each new one.

    With the k-th update u of a node::

        m ← β m + (1 − β) u,    remembered: m / (1 − β^k)

    k is the node's own count: a node that is not asked keeps its memory. The
    memory stores v = m / (1 − β^k), by the same recursion in another form::

        v ← v + (1 − β) / (1 − β^k) · (u − v)

    The memory takes a row of the model's size for every node that is connected, also
    for those that are not sampled in a round.

    Parameters
    ----------
    beta : float
        β in (0, 1).

    Examples
    --------
    >>> memory = NodeMemory(0.5)
    >>> for row in ([4.0], [1.0]):
    ...     remembered = memory.remember([7], Updates.of(np.array([row])))
    >>> remembered.combine(np.ones(1))  # (0.5 · 4 + 1) / 1.5
    [array([2.])]

    References
    ----------
    Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust
    Optimization", ICML 2021, let clients average their gradients, and step along the
    averages. Allen-Zhu, Ebrahimian, Li and Alistarh, "Byzantine-Resilient Non-Convex
    Stochastic Gradient Descent", ICLR 2021, let the server judge nodes by sums of their
    gradients, and step along the present ones, as here.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._memories: dict[int, _Memory] = {}

    def remember(self, nodes: Sequence[int], updates: Updates) -> Updates:
        """Enter the updates of some nodes; return what is remembered of these nodes.

        Parameters
        ----------
        nodes : sequence of n node ids
        updates : Updates
            Their n rows, in memory and not mixed. A reference is kept.

        Raises
        ------
        ValueError
            If a node's updates had another size before.
        """
        stack = updates.stack
        if not isinstance(stack, CpuStack):
            raise TypeError("Rows are remembered on the CPU")
        memories = [self._of(node, stack.layers) for node in nodes]
        for memory in memories:
            memory.count += 1
        steps = [(1 - self.beta) / (1 - self.beta**m.count) for m in memories]

        def enter(span: tuple[int, int, int]) -> None:
            k, a, b = span
            layer = stack.layers[k]
            block = layer.load(a, b, np.empty((stack.n, b - a), layer.dtype))
            for memory, step, row in zip(memories, steps, block, strict=False):
                held = memory.rows[k][a:b]
                held += layer.dtype.type(step) * (row - held)

        threads.run(enter, _spans(stack.layers))
        layers = [
            Layer(
                [*(m.rows[k] for m in memories), *_reference(updates, layer)],
                measured=layer.measured,
            )
            for k, layer in enumerate(stack.layers)
        ]
        return Updates(CpuStack(layers), updates.mixing, updates.reference)

    def counts(self, nodes: Iterable[int]) -> list[int]:
        """Return the number of updates that each of some nodes has sent."""
        return [self._memories[node].count for node in nodes]

    def rows(self) -> list[list[NDArray[Any]]]:
        """Return what is remembered of each node."""
        return [memory.rows for memory in self._memories.values()]

    def forget_all_but(self, nodes: Iterable[int]) -> None:
        """Forget the nodes that are not among these."""
        kept = set(nodes)
        self._memories = {n: m for n, m in self._memories.items() if n in kept}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "counts": {node: m.count for node, m in self._memories.items()},
            "rows": {node: m.rows for node, m in self._memories.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._memories = {
            node: _Memory(count, [row.copy() for row in state["rows"][node]])
            for node, count in state["counts"].items()
        }

    def _of(self, node: int, layers: Sequence[Layer]) -> _Memory:
        known = self._memories.get(node)
        if known is None:
            rows = [np.zeros(layer.width, layer.dtype) for layer in layers]
            known = self._memories[node] = _Memory(0, rows)
        if [row.size for row in known.rows] != [layer.width for layer in layers]:
            raise parameter_error(
                "memory",
                "0 for a model that changes its size during a run",
                self.beta,
                "Updates of different sizes have no average.",
            )
        return known


def solve_remembered(
    rule: Aggregator,
    memory: NodeMemory,
    nodes: Sequence[int],
    present: Updates,
    budget: Budget,
) -> Combination:
    """Return the present rows, clipped, with the weights that `weigh_nodes` gives.

    Raises
    ------
    ValueError
        As `weigh_nodes` does.
    """
    weights = weigh_nodes(rule, memory, nodes, present, budget)
    weights[: present.n] *= clip_factors(present, weights[: present.n])
    return Combination(weights)


def weigh_nodes(
    rule: Aggregator,
    memory: NodeMemory,
    nodes: Sequence[int],
    present: Updates,
    budget: Budget,
) -> Float64:
    """Enter the present rows, and let a rule weigh the nodes by past and present.

    Raises
    ------
    ValueError
        As `weigh_beside` does.
    """
    remembered = memory.remember(nodes, present)
    scale = share_of_noise(memory.beta, memory.counts(nodes))
    return weigh_beside(rule, remembered, present, scale, budget)


def weigh_beside(
    rule: Aggregator,
    remembered: Updates,
    present: Updates,
    scale: float,
    budget: Budget,
) -> Float64:
    """Return the weights that a rule gives nodes by their past and present.

    The rule sees what is remembered of each node beside its present row, in columns of
    their own. The present is scaled down to the noise of what is remembered: that is
    little against a lie of many rounds, and shows a node that turns at once.

    Raises
    ------
    ValueError
        As the rule does, or if it gives clients no weights.
    """
    past, now = remembered.stack, present.stack
    if not isinstance(past, CpuStack) or not isinstance(now, CpuStack):
        raise TypeError("Rows are remembered on the CPU")
    layers = [*past.layers, *(replace(layer, scale=scale) for layer in now.layers)]
    both = CpuStack(layers)
    if now.has_moments and now.moments.pivot is None and past.moments.pivot is None:
        products = past.moments.products + scale**2 * now.moments.products
        both.use_products(products)
    rows = Updates(both, present.mixing, present.reference)
    weights = rule.solve(rows, budget).weights()
    if weights is None:
        raise _weighs_no_clients(rule)
    return weights.copy()


def share_of_noise(beta: float, counts: Sequence[int]) -> float:
    r"""Return the standard deviation of what is remembered, in that of one update.

    It is that of an average of k independent updates with weights β^(k−j), where k is
    the median count of the nodes::

        √((1 − β)/(1 + β) · (1 + β^k)/(1 − β^k))

    Examples
    --------
    >>> share_of_noise(0.6, [20, 1, 30])  # √(0.4/1.6)
    0.5000...
    """
    fading = beta ** float(np.median(counts))
    share = (1 - beta) / (1 + beta) * (1 + fading) / (1 - fading)
    return float(np.sqrt(share))


def clip_factors(present: Updates, weights: Float64) -> Float64:
    """Return the factors that cut present rows to twice the median norm.

    The median is over the rows with weight. So a strike of a node that was honest for
    long moves the model by two honest updates times its weight, at most.

    Parameters
    ----------
    present : Updates
    weights : ndarray of shape (n,)
        The weights of the n rows.

    Examples
    --------
    >>> rows = Updates.of(np.array([[1.0], [2.0], [3.0], [40.0]]))
    >>> clip_factors(rows, np.array([0.4, 0.2, 0.2, 0.2]))
    array([1.   , 1.   , 1.   , 0.125])
    """
    zero = [np.zeros_like(part) for part in present.combine(np.zeros(present.n))]
    norms = np.sqrt(present.stack.deviations(zero, present.mixing))
    counted = norms[np.abs(weights) > 1e-9]
    limit = _CLIP * float(np.median(counted)) if counted.size else 0.0
    factors: Float64 = limit / np.maximum(norms, max(limit, np.finfo(float).tiny))
    return factors


def check_memory(beta: float, rule: Aggregator) -> None:
    """Raise a ValueError if β is not in [0, 1), or the rule weighs no clients."""
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < 1:
        raise parameter_error("memory", "a number in [0, 1)", beta)
    if beta:
        check_weighs_clients(rule)


def check_weighs_clients(rule: Aggregator) -> None:
    """Raise a ValueError for a rule that works by coordinate, or by layer.

    It gives clients no weights that could be applied to other rows of theirs.

    Examples
    --------
    >>> from flwr_ctma.aggregators import parse_aggregator
    >>> check_weighs_clients(parse_aggregator("ctma(cwmed)"))
    >>> check_weighs_clients(parse_aggregator("nnm(cwmed)"))
    Traceback (most recent call last):
    ValueError: Parameter `aggregator` should be a rule that weighs whole clients, \
beside `memory`. Found `aggregator = 'nnm(cwmed)'`. Use caf, nnm(gm) or gm.
    """
    inner = rule
    while isinstance(inner, MetaAggregator) and not isinstance(inner, CTMA | Layerwise):
        inner = inner.base
    if isinstance(
        inner, CwMed | CwTM | MeaMed | Bulyan | Hierarchical | Layerwise | LASA
    ):
        raise _weighs_no_clients(rule)


def _weighs_no_clients(rule: Aggregator) -> ValueError:
    return parameter_error(
        "aggregator",
        "a rule that weighs whole clients, beside `memory`",
        str(rule),
        "Use caf, nnm(gm) or gm.",
    )


def _reference(updates: Updates, layer: Layer) -> list[NDArray[Any]]:
    """Return the reference in a layer, without the origin, as a list of 0 or 1 rows."""
    if updates.reference is None:
        return []
    row = layer.rows[updates.reference]
    return [row if layer.origin is None else row - layer.origin]


def _spans(layers: Sequence[Layer]) -> list[tuple[int, int, int]]:
    return [
        (k, a, min(a + _WIDTH, layer.width))
        for k, layer in enumerate(layers)
        for a in range(0, layer.width, _WIDTH)
    ]
