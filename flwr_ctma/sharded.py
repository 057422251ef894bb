"""Rows cut into shards of coordinates, which Ray workers hold on one machine or many.

What rules ask of rows are sums over coordinates, and results for each coordinate. Both
fall apart: partial inner products are added up, kernels and weighted sums run where the
shard is. Between machines travel the rows, once, then n² numbers a shard, and the
result.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np

from flwr_ctma.cpu import CpuStack, Panel, Span
from flwr_ctma.errors import wrong
from flwr_ctma.spec import check_fields
from flwr_ctma.stack import Columns, Float64, Kernel, Stack, Vector

__all__ = ["RayBackend", "ShardedStack", "Unavailable"]

# A shard whose worker dies is built again, this many times in one question.
_REBUILDS = 3


class Unavailable(RuntimeError):
    """The workers cannot do what was asked of them; nothing is wrong with the rows."""


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
            raise wrong("backend", "one that is installed", "ray", remedy)
        if self.workers is not None and self.workers < 1:
            raise wrong("workers", "at least 1, or None", self.workers)
        if not self.cpus >= 0:
            raise wrong("cpus", "at least 0", self.cpus)
        if not self.timeout > 0:
            raise wrong("timeout", "above 0", self.timeout)

    def begin(self, sent: Any, read: Any) -> "RayBackend":
        """Begin a round: its rows go to the workers when all are there."""
        return self

    def arrive(self, messages: Any) -> None:
        """Wait for the others."""

    def place(self, rows: CpuStack) -> "ShardedStack":
        """Hand the rows to the workers: one copy, into the store that they read."""
        return ShardedStack(rows, self._pool)

    @cached_property
    def _pool(self) -> "_Pool":
        return _Pool(self)


class ShardedStack(Stack):
    """n rows on the workers of a pool, each with a range of the coordinates.

    A shard that is lost with its worker is built again from the rows that came.
    """

    def __init__(self, rows: CpuStack, pool: "_Pool") -> None:
        self._local, self._pool, self._key = rows, pool, next(pool.keys)
        self._shards = _cut(rows, len(pool.workers))
        self._widths = [sum(b - a for _, a, b in shard) for shard in self._shards]
        weakref.finalize(self, pool.drop, self._key).atexit = False
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

    def _joined(self, parts: Sequence[Vector]) -> Vector:
        panels = self._local.panels
        vector = [np.empty(panel.width, panel.dtype) for panel in panels]
        for shard, part in zip(self._shards, parts, strict=True):
            for (k, a, b), values in zip(shard, part, strict=True):
                vector[k][a:b] = values
        return vector

    def _load(self, i: int) -> None:
        panels = [_columns(self._local.panels[k], a, b) for k, a, b in self._shards[i]]
        self._pool.load(i, self._key, panels)

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


class _Worker:
    """A Ray actor: stacks of panels by key, and their methods."""

    def __init__(self, cpus: float) -> None:
        import os

        # Workers share a machine: each keeps to the cores it was given.
        os.environ["FLWR_CTMA_NUM_THREADS"] = str(max(1, int(cpus)))
        self._stacks: dict[int, CpuStack] = {}

    def load(self, key: int, panels: list[Panel]) -> None:
        self._stacks[key] = CpuStack(panels)

    def ask(self, key: int, method: str, given: tuple[Any, ...]) -> Any:
        """Answer; None if a worker that died was to hold this shard."""
        if key not in self._stacks:
            return None
        return getattr(self._stacks[key], method)(*given)

    def drop(self, key: int) -> None:
        self._stacks.pop(key, None)


class _Pool:
    """Workers in a fixed order: the i-th shard of every stack is the i-th worker's."""

    def __init__(self, backend: RayBackend) -> None:
        import ray

        self._backend, self.keys = backend, itertools.count()
        if not ray.is_initialized():
            _connected(lambda: ray.init(backend.address, log_to_driver=False))
        cores = int(_connected(ray.cluster_resources).get("CPU", 1))
        count = backend.workers or max(1, int(cores / max(backend.cpus, 1)))
        self.workers = [self._start() for _ in range(count)]
        ready = [worker.drop.remote(-1) for worker in self.workers]
        _, late = ray.wait(ready, num_returns=count, timeout=backend.timeout)
        if late:
            raise Unavailable(
                f"{len(late)} of {count} Ray workers did not start in "
                f"{backend.timeout:g} s: no cores are free. Ask for fewer `workers`, "
                "or for `cpus=0` beside a simulation that has them all."
            )

    def _start(self) -> Any:
        import ray

        cpus = self._backend.cpus
        options = {"num_cpus": cpus, "scheduling_strategy": "SPREAD"}
        return ray.remote(_Worker).options(**options).remote(cpus)

    def revive(self, i: int) -> None:
        """Start another worker in the place of one that died."""
        import ray

        try:
            ray.get(self.workers[i].drop.remote(-1))
        except ray.exceptions.RayActorError:
            self.workers[i] = self._start()

    def load(self, i: int, key: int, panels: list[Panel]) -> None:
        _connected(lambda: self.workers[i].load.remote(key, panels))

    def ask(self, i: int, key: int, method: str, given: tuple[Any, ...]) -> Any:
        return _connected(lambda: self.workers[i].ask.remote(key, method, given))

    def answers(self, asked: dict[int, Any]) -> dict[int, Any]:
        """Wait for answers; without those of workers that died, or know nothing."""
        import ray

        found = {}
        for i, reference in asked.items():
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayActorError:
                continue
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ValueError):
                    raise error.cause from None  # what the rows are at fault for
                raise Unavailable(f"A Ray worker failed: {error.cause!r}") from error
            except ray.exceptions.RayError as error:
                raise Unavailable(f"Ray failed: {error}") from error
            if answer is not None:
                found[i] = answer
        return found

    def drop(self, key: int) -> None:
        """Let go of a stack."""
        import ray

        if ray.is_initialized():
            for worker in self.workers:
                worker.drop.remote(key)


def _connected(call: Callable[[], Any]) -> Any:
    """Make a call to Ray, which raises what it likes if there is no cluster."""
    import ray

    try:
        return call()
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise Unavailable(f"Ray failed: {error}") from error


def _cut(rows: CpuStack, count: int) -> list[list[Span]]:
    """Deal the columns into neighbouring shards of nearly equal width.

    Cut where the blocks of a visit in one process end: each block then is computed as
    it is there, to the bit.
    """
    spans = list(rows._spans())
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


def _columns(panel: Panel, a: int, b: int) -> Panel:
    """Columns of a panel, laid out so that Ray stores them with one copy."""
    rows = panel.rows
    cut = (
        np.ascontiguousarray(rows[:, a:b])
        if isinstance(rows, np.ndarray)
        else [row[a:b] for row in rows]
    )
    origin = None if panel.origin is None else panel.origin[a:b]
    return Panel(cut, origin, panel.measured)
