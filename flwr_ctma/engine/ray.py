"""Rows cut into shards of coordinates, which Ray workers hold on one machine or many.

What rules ask of rows are sums over coordinates, and results for each coordinate. Both
fall apart: partial inner products are added up, kernels and weighted sums run where the
shard is. Between machines travel the rows, once, then n² numbers a shard, and the
result.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from flwr_ctma.engine.actors import Pool, Unavailable
from flwr_ctma.engine.cpu import CpuStack, Span
from flwr_ctma.engine.layer import Layer
from flwr_ctma.engine.stack import Columns, Float64, Kernel, Stack, Vector
from flwr_ctma.errors import parameter_error
from flwr_ctma.spec import check_fields

__all__ = ["RayBackend", "ShardedStack"]

# A shard whose worker dies is built again, this many times in one question.
_REBUILDS = 3


@dataclass(frozen=True)
class RayBackend:
    """Aggregate on the workers of a Ray cluster.

    Workers are started when they are first needed and serve until the backend is let
    go. They import `flwr_ctma`: install it wherever Ray runs.

    Parameters
    ----------
    address : str | None (default: None)
        Of the cluster, as `ray.init` takes it; None: a connection this process has,
        else the cluster that `RAY_ADDRESS` names, else Ray on this machine.
    workers : int | None (default: None)
        How many hold shards; None: as many as the cluster has cores for.
    cpus : float (default: 1.0)
        Cores of a worker. 0 asks for none: beside a simulation that has them all.
    timeout : float (default: 60.0)
        Seconds to wait for a worker to start.

    Raises
    ------
    ValueError
        For a parameter of the wrong type or below its range, or if there is no Ray.

    Examples
    --------
    >>> RayBackend(workers=4)
    RayBackend(address=None, workers=4, cpus=1.0, timeout=60.0)
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        check_fields(self)
        if find_spec("ray") is None:
            remedy = "Install Ray: `pip install 'flwr[simulation]'`."
            raise parameter_error("backend", "one that is installed", "ray", remedy)
        if self.workers is not None and self.workers < 1:
            raise parameter_error("workers", "at least 1, or None", self.workers)
        if not self.cpus >= 0:
            raise parameter_error("cpus", "at least 0", self.cpus)
        if not self.timeout > 0:
            raise parameter_error("timeout", "above 0", self.timeout)

    def open_round(self, schema: Any, needs_products: bool) -> "RayBackend":
        """Return this backend: rows go to the workers when all have arrived."""
        return self

    def add(self, replies: Any, waiting: bool) -> None:
        """Do nothing."""

    def place(self, rows: CpuStack, keys: Sequence[str] = ()) -> "ShardedStack":
        """Hand the rows to the workers: one copy, into the store that they read."""
        return ShardedStack(rows, self._pool)

    @cached_property
    def _pool(self) -> Pool:
        return Pool(self.address, self.workers, self.cpus, self.timeout)


class ShardedStack(Stack):
    """n rows on the workers of a pool, each with a range of the coordinates.

    A shard that is lost with its worker is built again from the rows that came.
    """

    def __init__(
        self, rows: CpuStack, pool: Pool, source: "ShardedStack | None" = None
    ) -> None:
        self._local, self._pool, self._key = rows, pool, next(pool.keys)
        self._shards: list[list[Span]] = (
            source._shards if source else _cut(rows, len(pool.workers))
        )
        self._widths = [sum(b - a for _, a, b in shard) for shard in self._shards]
        weakref.finalize(self, pool.drop, self._key, len(self._shards)).atexit = False
        if source is None:
            for i in range(len(self._shards)):
                self._load(i)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self._local.n

    def products(self, pivot: int | None, scale: Float64 | None) -> Float64:
        """Inner products of all rows: the sum of those of the shards."""
        found: Float64 = sum(self._ask("products", pivot, scale))
        return found

    def largest(self) -> Float64:
        """The largest absolute value of each row."""
        most: Float64 = np.max(self._ask("largest"), axis=0)
        return most

    def combine(self, coefficients: Float64) -> Vector:
        """The vector `coefficients @ rows`, each part from where its rows are."""
        return self._joined(self._ask("combine", coefficients))

    def values(self, kernel: Kernel, mixing: Float64 | None) -> Vector:
        """Apply a kernel to all columns, where they are."""
        return self._joined(self._ask("values", kernel, mixing))

    def columns(self, kernel: Kernel, mixing: Float64 | None) -> Columns:
        """Apply a kernel to all columns and measure, where they are."""
        found = self._ask("columns", kernel, mixing)
        return Columns(
            self._joined([columns.vector for columns in found]),
            sum(columns.squared_distances for columns in found),
        )

    def deviations(self, vector: Vector, mixing: Float64 | None) -> Float64:
        """Squared distance of each row to a vector."""
        parts = [[vector[k][a:b] for k, a, b in shard] for shard in self._shards]
        found: Float64 = sum(self._ask("deviations", mixing, each=parts))
        return found

    def shares(self, kernel: Kernel, mixing: Float64 | None) -> Float64:
        """Mean over coordinates of the weight that a kernel gives to each row."""
        found = self._ask("shares", kernel, mixing)
        total: Float64 = np.average(found, axis=0, weights=self._widths)
        return total

    def take(self, rows: "np.ndarray[Any, Any]") -> "ShardedStack":
        """Some of the rows, which the workers have already."""
        taken = ShardedStack(self._local.take(rows), self._pool, self)
        for i in range(len(self._shards)):
            self._pool.take(i, taken._key, self._key, rows)
        return taken

    def split(self) -> Sequence[CpuStack]:
        """Return a stack for each layer, in this process."""
        return self._local.split()

    def from_vectors(self, vectors: Sequence[Vector]) -> CpuStack:
        """Vectors as rows in this process."""
        return self._local.from_vectors(vectors)

    def append(self, vector: Sequence[Any]) -> "ShardedStack":
        """Return a stack with one more row, sent to the workers anew."""
        return ShardedStack(self._local.append(vector), self._pool)

    def _joined(self, parts: Sequence[Vector]) -> Vector:
        layers = self._local.layers
        vector = [np.empty(layer.width, layer.dtype) for layer in layers]
        for shard, part in zip(self._shards, parts, strict=True):
            for (k, a, b), values in zip(shard, part, strict=True):
                vector[k][a:b] = values
        return vector

    def _load(self, i: int) -> None:
        layers = [_columns(self._local.layers[k], a, b) for k, a, b in self._shards[i]]
        self._pool.load(i, self._key, layers)

    def _ask(
        self, method: str, *shared: Any, each: Sequence[Any] | None = None
    ) -> list[Any]:
        """Ask all shards at once; build again those that are lost."""
        count = len(self._shards)
        given = [shared] * count if each is None else [(one, *shared) for one in each]
        answers: dict[int, Any] = {}
        for _ in range(1 + _REBUILDS):
            missing = [i for i in range(count) if i not in answers]
            asked = {i: self._pool.ask(i, self._key, method, given[i]) for i in missing}
            answers |= self._pool.answers(asked)
            lost = [i for i in missing if i not in answers]
            if not lost:
                return [answers[i] for i in range(count)]
            for i in lost:
                self._pool.revive(i)
                self._load(i)
        raise Unavailable(
            f"{len(lost)} of {count} shards were lost {1 + _REBUILDS} times: their Ray "
            "workers die. Out of memory? Use more machines, or fewer clients."
        )


def _cut(rows: CpuStack, count: int) -> list[list[Span]]:
    """Deal the columns into neighbouring shards of nearly equal width.

    Cut where the blocks of a visit in one process end: each block then is computed as
    it is there, to the bit.
    """
    spans = list(rows.spans())
    ends = np.cumsum([b - a for _, a, b in spans])
    bounds = [
        0,
        *(1 + np.searchsorted(ends, np.arange(1, count + 1) * ends[-1] / count)),
    ]
    bounds = [min(bound, len(spans)) for bound in bounds]
    return [_merged(spans[i:j]) for i, j in pairwise(bounds) if j > i]


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for k, a, b in spans:
        if merged and merged[-1][0] == k:
            merged[-1] = (k, merged[-1][1], b)
        else:
            merged.append((k, a, b))
    return merged


def _columns(layer: Layer, a: int, b: int) -> Layer:
    """Return columns of a layer, laid out so that Ray stores them with one copy."""
    rows = layer.rows
    cut = (
        np.ascontiguousarray(rows[:, a:b])
        if isinstance(rows, np.ndarray)
        else [row[a:b] for row in rows]
    )
    origin = None if layer.origin is None else layer.origin[a:b]
    return replace(layer, rows=cut, origin=origin)
