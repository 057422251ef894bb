"""Ray actors that hold stacks, and what becomes of those that die."""

import itertools
import os
from collections.abc import Callable
from typing import Any

from flwr_ctma.engine.cpu import CpuStack
from flwr_ctma.engine.layer import Layer

__all__ = ["Pool", "Unavailable"]

Key = tuple[int, int]  # stack, shard


class Unavailable(RuntimeError):
    """The workers cannot do what was asked of them; nothing is wrong with the rows."""


class _Worker:
    """A Ray actor: shards of stacks, and their methods."""

    def __init__(self, cpus: float) -> None:
        # Workers share a machine: each keeps to the cores it was given.
        os.environ["FLWR_CTMA_NUM_THREADS"] = str(max(1, int(cpus)))
        self._stacks: dict[Key, CpuStack] = {}

    def load(self, key: Key, layers: list[Layer]) -> None:
        self._stacks[key] = CpuStack(layers)

    def take(self, key: Key, source: Key, rows: Any) -> None:
        if source in self._stacks:
            self._stacks[key] = self._stacks[source].take(rows)

    def ask(self, key: Key, method: str, given: tuple[Any, ...]) -> Any:
        """Answer; None if a worker that died was to hold this shard."""
        if key not in self._stacks:
            return None
        return getattr(self._stacks[key], method)(*given)

    def drop(self, key: Key) -> None:
        self._stacks.pop(key, None)


class Pool:
    """Workers in a fixed order: the i-th shard of every stack is the i-th worker's.

    Parameters are those of `RayBackend`.
    """

    def __init__(
        self, address: str | None, workers: int | None, cpus: float, timeout: float
    ) -> None:
        import ray

        self._cpus, self._timeout, self.keys = cpus, timeout, itertools.count()
        if not ray.is_initialized():
            _connected(lambda: ray.init(address, log_to_driver=False))
        cores = int(_connected(ray.cluster_resources).get("CPU", 1))
        count = workers or max(1, int(cores / max(cpus, 1)))
        self.workers = [self._start() for _ in range(count)]
        late = self._late(self.workers)
        if late:
            raise Unavailable(
                f"{late} of {count} Ray workers did not start in {timeout:g} s: "
                "no cores are free, or they are busy. Ask for fewer `workers`, for "
                "`cpus=0` beside a simulation that has all cores, or wait longer: "
                "`timeout`."
            )

    def _start(self) -> Any:
        import ray

        options = {"num_cpus": self._cpus, "scheduling_strategy": "SPREAD"}
        return ray.remote(_Worker).options(**options).remote(self._cpus)

    def _late(self, workers: list[Any]) -> int:
        """Wait for workers to start; how many have not in time."""
        import ray

        ready = [worker.drop.remote((-1, -1)) for worker in workers]
        _, late = ray.wait(ready, num_returns=len(ready), timeout=self._timeout)
        return len(late)

    def revive(self, i: int) -> None:
        """Start another worker in the place of one that died.

        If its core is gone with its machine, a neighbour takes its shards.
        """
        import ray

        try:
            ray.get(self.workers[i].drop.remote((-1, -1)))
        except ray.exceptions.RayActorError:
            started = self._start()
            if self._late([started]):
                ray.kill(started)
                started = self.workers[i - 1]
            self.workers[i] = started

    def load(self, i: int, key: int, layers: list[Layer]) -> None:
        """Give a worker its shard of a stack."""
        _connected(lambda: self.workers[i].load.remote((key, i), layers))

    def take(self, i: int, key: int, source: int, rows: Any) -> None:
        """Let a worker keep some rows of a stack, if it has that, as another."""
        _connected(lambda: self.workers[i].take.remote((key, i), (source, i), rows))

    def ask(self, i: int, key: int, method: str, given: tuple[Any, ...]) -> Any:
        """Ask a worker about its shard; see `answers`."""
        return _connected(lambda: self.workers[i].ask.remote((key, i), method, given))

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

    def drop(self, key: int, shards: int) -> None:
        """Let go of a stack."""
        import ray

        if ray.is_initialized():
            for i in range(shards):
                self.workers[i].drop.remote((key, i))


def _connected(call: Callable[[], Any]) -> Any:
    """Make a call to Ray, which raises what it likes if there is no cluster."""
    import ray

    try:
        return call()
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise Unavailable(f"Ray failed: {error}") from error
