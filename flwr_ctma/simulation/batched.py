"""Run the clients of a round concurrently, and batch what they compute."""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from logging import WARNING
from typing import Any, TypeVar, cast

from flwr.app import Message
from greenlet import getcurrent, greenlet

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = ["BatchedGrid", "run_batched"]

_MAX_CLIENTS = 64  # at a time: each holds a model

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Compute = Callable[[Sequence[Any]], Sequence[Any]]
_Call = tuple[Compute, Any]


def run_batched(
    compute: Callable[[Sequence[Request]], Sequence[Answer]], request: Request
) -> Answer:
    """Compute something for this client in one batch with the other clients.

    In a `BatchedGrid` the call waits until every other client of the round has called
    `run_batched` or has ended. Elsewhere it returns `compute([request])[0]`.

    Clients share a thread. Enter contexts that hold for a thread, such as
    `torch.autocast` or an event loop, in `compute`, or leave them before the call.

    Parameters
    ----------
    compute : Callable
        A module-level function that maps requests to one answer each. If it raises, it
        runs again for each client alone, and that client gets the exception.
    request : object
        The input of this client.

    Returns
    -------
    object
        The answer for this client.

    Raises
    ------
    ValueError
        Within `torch.autocast` or `torch.inference_mode`, in a `BatchedGrid`.

    Examples
    --------
    >>> run_batched(lambda numbers: [2 * number for number in numbers], 4)
    8
    """
    turn = getcurrent()
    if not isinstance(turn, _Turn):
        return compute([request])[0]
    hash(compute)  # batches are found by it: what has no hash fails in its client
    _check_contexts()
    return cast(Answer, turn.pause((compute, request)))


class BatchedGrid(InProcessGrid):
    """An InProcessGrid that computes the `run_batched` calls of its clients in batches.

    Each client of a round has a stack of its own, a greenlet, in the caller's thread.
    One client runs at any time, always in the same order: client code need not be
    thread-safe, and the same seed gives the same result. A client that ends, raises or
    never calls `run_batched` delays no other client. Batched results equal those
    computed one by one, up to rounding.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_nodes : int
        Number of nodes; node i has partition i.
    run_config : UserConfig | None (default: None)
        `context.run_config` of the clients.

    Examples
    --------
    >>> from flwr.app import MetricRecord, RecordDict
    >>> from flwr.clientapp import ClientApp
    >>> def count(requests):
    ...     return [len(requests)] * len(requests)
    >>> app = ClientApp()
    >>> @app.query()
    ... def count_clients(message, context):
    ...     metrics = MetricRecord({"clients": run_batched(count, None)})
    ...     return Message(RecordDict({"metrics": metrics}), reply_to=message)
    >>> grid = BatchedGrid(app, num_nodes=3)
    >>> nodes = grid.get_node_ids()
    >>> messages = [Message(RecordDict(), node, "query") for node in nodes]
    >>> [m.content["metrics"]["clients"] for m in grid.send_and_receive(messages)]
    [3, 3, 3]
    """

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the clients, up to 64 of them concurrently."""
        pushed: list[str] = []
        with self._one_at_a_time:
            for some in _waves(messages):
                ids = [self._number(message) for message in some]
                tasks = [partial(self._answer, message) for message in some]
                replies = _run_in_turns(tasks)
                for key, reply in zip(ids, replies, strict=True):
                    self._keep(key, reply)
                pushed += ids
        return pushed


class _Turn(greenlet):  # type: ignore[misc]
    """A task with a stack of its own, which pauses at every call of `run_batched`.

    Answers are functions that the task calls, so that exceptions are raised there.
    """

    def pause(self, call: _Call) -> Any:
        """Wait for the answer; called in the task."""
        return _switch(self.parent, call)()


def _run_in_turns(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run tasks from call to call of `run_batched`; return their results."""
    turns = [_Turn(task) for task in tasks]
    try:
        found = {turn: _switch(turn) for turn in turns}
        while calls := {turn: found[turn] for turn in turns if not turn.dead}:
            answers = _answers(calls)
            found |= {turn: _switch(turn, answers[turn]) for turn in calls}
        return list(found.values())
    finally:
        for turn in turns:  # after an interrupt
            if not turn.dead:
                turn.throw()


def _switch(turn: greenlet, *given: Any) -> Any:
    """Go on with another task until it comes back.

    Whether torch records gradients is set for a thread, and so for all tasks.
    """
    torch = sys.modules.get("torch")
    records = torch.is_grad_enabled() if torch else True
    try:
        return turn.switch(*given)
    finally:
        if torch := sys.modules.get("torch"):  # the other task may have imported it
            torch.set_grad_enabled(records)


def _check_contexts() -> None:
    """Refuse contexts of torch that the other clients and `compute` would be in."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.is_inference_mode_enabled():
        found = "inference_mode"
    elif torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        found = "autocast"
    else:
        return
    raise parameter_error(
        "run_batched",
        f"called outside of torch.{found}",
        f"within torch.{found}",
        "Clients of a batched simulation share a thread: enter the context in "
        "`compute`, or leave it before the call.",
    )


def _answers(calls: dict[_Turn, _Call]) -> dict[_Turn, Callable[[], Any]]:
    """Answer all calls; those of one function form a batch."""
    by_compute: dict[Hashable, list[_Turn]] = {}
    for turn, (compute, _) in calls.items():
        by_compute.setdefault(compute, []).append(turn)
    answers: dict[_Turn, Callable[[], Any]] = {}
    for turns in by_compute.values():
        compute, requests = calls[turns[0]][0], [calls[turn][1] for turn in turns]
        try:
            found = zip(turns, compute(requests), strict=True)
            answers |= {turn: partial(_identity, answer) for turn, answer in found}
        except (Exception, SystemExit) as error:
            log(WARNING, "Clients compute one by one: %s", error)
            for turn, request in zip(turns, requests, strict=True):
                answers[turn] = partial(_alone, compute, request)
    return answers


def _identity(answer: Any) -> Any:
    return answer


def _alone(compute: Compute, request: Any) -> Any:
    return compute([request])[0]


def _waves(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Split messages into waves with at most one message for each node."""
    wave: dict[int, Message] = {}
    for message in messages:
        node = message.metadata.dst_node_id
        if node in wave or len(wave) == _MAX_CLIENTS:
            yield list(wave.values())
            wave = {}
        wave[node] = message
    if wave:
        yield list(wave.values())
