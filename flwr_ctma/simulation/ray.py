"""An InProcessGrid whose clients run in Ray actors, one for each core."""

import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Message, UserConfig
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.grid import InProcessGrid, from_bytes, to_bytes

__all__ = ["RayGrid"]

Bytes = NDArray[np.uint8]

_NICENESS = "RAY_worker_niceness"
_START = 300  # seconds for the actors to start, which import the app


class RayGrid(InProcessGrid):
    """An InProcessGrid whose clients run in Ray actors, in parallel.

    Each actor runs the clients of a fixed set of nodes one by one and keeps their
    `context.state`. The grid sends each actor its messages of a round in one call, so
    the cost of a round grows with the messages, not with the number of nodes.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_nodes : int
        Number of nodes; node i has partition i.
    run_config : UserConfig | None (default: None)
        `context.run_config` of the clients.
    workers : int | None (default: None)
        Number of actors, at most the CPUs of Ray; None for all that are free.

    Raises
    ------
    ValueError
        If `workers` is less than 1, or more than Ray has CPUs.
    RuntimeError
        If the actors do not start in five minutes, or one dies.

    Notes
    -----
    Ray is started if it does not run, and then stopped by `close`. Flower runs the
    actors of its simulation, and Ray its workers, at a low priority, at which they
    starve beside other work; those of a Ray that this grid starts have the priority of
    this process.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        run_config: UserConfig | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__(client_app, num_nodes, run_config)
        if workers is not None and workers < 1:
            raise parameter_error("workers", "at least 1 or None", workers)
        import ray
        from ray import cloudpickle

        self._starts_ray = not ray.is_initialized()
        if self._starts_ray:
            _start_ray(workers)
        cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        if workers is not None and workers > cpus:
            remedy = "Ray would wait for ever for the others."
            raise parameter_error(
                "workers", f"at most the {cpus} CPUs of Ray", workers, remedy
            )
        free = ray.available_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
        count = min(workers or max(1, int(free)), num_nodes)
        app = cloudpickle.dumps(client_app)  # type: ignore[no-untyped-call]
        config = dict(run_config or {})
        actor: Any = ray.remote(num_cpus=1)(_Clients)
        self._workers: list[Any] = [
            actor.remote(sys.path, app, num_nodes, config) for _ in range(count)
        ]
        ready = [worker.ready.remote() for worker in self._workers]
        started, _ = ray.wait(ready, num_returns=count, timeout=_START)
        if len(started) < count:
            self.close()
            raise RuntimeError(
                f"{len(started)} of {count} Ray actors started in {_START} s: their "
                "CPUs are busy with other actors. Ask for fewer `workers`, or stop the "
                "other Ray program."
            )
        self._wait(ready)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let the clients of all actors reply, and wait for them."""
        with self._one_at_a_time:
            pushed: list[str] = []
            shares: dict[int, list[tuple[str, Bytes]]] = defaultdict(list)
            for message in messages:
                key = self._number(message)
                pushed.append(key)
                node = message.metadata.dst_node_id
                shares[self._worker_of(node)].append((key, to_bytes(message)))
            calls = [self._workers[w].reply.remote(s) for w, s in shares.items()]
            for key, data in (item for call in self._wait(calls) for item in call):
                self._keep(key, None if data is None else from_bytes(data))
            return pushed

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all nodes, and replies that have not been pulled."""
        kept: list[Bytes] = []
        states = self._wait([worker.kept.remote() for worker in self._workers])
        for node in self._contexts:
            kept.append(states[self._worker_of(node)][len(kept)])
        return {**super().state_dict(), "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        nodes = {**state, "replies": {}}
        self._wait([worker.load.remote(nodes) for worker in self._workers])

    def close(self) -> None:
        """End the actors, and Ray if this grid started it."""
        import ray

        if self._starts_ray:
            ray.shutdown()
            return
        for worker in self._workers:
            ray.kill(worker)

    def _wait(self, calls: list[Any]) -> list[Any]:
        """Return the results of calls to actors."""
        import ray

        try:
            results: list[Any] = ray.get(calls)
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                "A Ray actor with clients died, perhaps for want of memory. Ask for "
                f"fewer `workers`. {error}"
            ) from error
        return results

    def _worker_of(self, node_id: int) -> int:
        return node_id % len(self._workers)


def _start_ray(cpus: int | None) -> None:
    """Start Ray with workers at the priority of this process."""
    import ray

    before = os.environ.get(_NICENESS)
    os.environ.setdefault(_NICENESS, "0")
    try:
        ray.init(num_cpus=cpus, log_to_driver=False, include_dashboard=False)
    finally:
        if before is None:
            del os.environ[_NICENESS]


class _Clients:
    """An actor: the clients of some nodes."""

    def __init__(
        self, path: list[str], app: bytes, num_nodes: int, run_config: UserConfig
    ) -> None:
        from ray import cloudpickle

        sys.path.extend(folder for folder in path if folder not in sys.path)
        self._grid = InProcessGrid(cloudpickle.loads(app), num_nodes, run_config)

    def ready(self) -> None:
        """Answer once the app is there."""

    def reply(self, messages: list[tuple[str, Bytes]]) -> list[tuple[str, Any]]:
        replies = []
        for key, data in messages:
            answer = self._grid._answer(from_bytes(data))
            replies.append((key, None if answer is None else to_bytes(answer)))
        return replies

    def kept(self) -> list[Bytes]:
        kept: list[Bytes] = self._grid.state_dict()["kept"]
        return kept

    def load(self, state: Mapping[str, Any]) -> None:
        self._grid.load_state_dict(state)
