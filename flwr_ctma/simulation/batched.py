"""The clients of a round together: what they ask for at the same time is one batch."""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from logging import WARNING
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from flwr.app import Message

from flwr_ctma.compat import log
from flwr_ctma.simulation.grid import InProcessGrid

__all__ = ["BatchedGrid", "run_batched"]

_AT_ONCE = 64  # clients, each with a thread

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Compute = Callable[[Sequence[Any]], Sequence[Any]]
_Question = tuple[Compute, Any]


def run_batched(
    compute: Callable[[Sequence[Request]], Sequence[Answer]], request: Request
) -> Answer:
    """Compute something for this client, and for all that ask at the same time.

    In a `BatchedGrid` it waits until every other client of the round has asked, too, or
    has ended; anywhere else it is `compute([request])[0]`.

    Parameters
    ----------
    compute : Callable
        A function of a module, from requests to one answer for each. If it raises, it
        is called again for each client alone, and that client gets the exception.
    request : object
        What it needs from this client.

    Returns
    -------
    object
        The answer for this client.

    Examples
    --------
    >>> run_batched(lambda numbers: [2 * number for number in numbers], 4)
    8
    """
    turn: _Turn | None = getattr(_here, "turn", None)
    if turn is None:
        return compute([request])[0]
    return cast(Answer, turn.ask((compute, request)))


class BatchedGrid(InProcessGrid):
    """An InProcessGrid whose clients compute together what they pass to `together`.

    Each client of a round has a thread, of which only one runs at any time, always in
    the same order: client code need not be thread-safe, and the same seed gives the
    same result. Who ends, raises or never asks holds up nobody. What is computed in a
    batch equals what is computed one by one, but for the rounding of floats.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_nodes : int
        How many nodes there are, each its own partition.
    run_config : UserConfig | None (default: None)
        What the clients find in `context.run_config`.

    Examples
    --------
    >>> from flwr.app import MetricRecord, RecordDict
    >>> from flwr.clientapp import ClientApp
    >>> def count(requests):
    ...     return [len(requests)] * len(requests)
    >>> app = ClientApp()
    >>> @app.query()
    ... def who_is_there(message, context):
    ...     metrics = MetricRecord({"clients": run_batched(count, None)})
    ...     return Message(RecordDict({"metrics": metrics}), reply_to=message)
    >>> grid = BatchedGrid(app, num_nodes=3)
    >>> asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
    >>> [m.content["metrics"]["clients"] for m in grid.send_and_receive(asked)]
    [3, 3, 3]
    """

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(len(self._contexts), _AT_ONCE), "client")

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let the clients answer, up to 64 of them together."""
        pushed: list[str] = []
        with self._one_at_a_time:
            for some in _waves(messages):
                ids = [self._number(message) for message in some]
                tasks = [partial(self._answer, message) for message in some]
                for key, reply in zip(ids, _in_turns(tasks, self._pool), strict=True):
                    self._keep(key, reply)
                pushed += ids
        return pushed


class _Turn:
    """A task in a thread of its own, which runs from question to question.

    Answers are functions that the thread calls; what they raise is raised there.
    """

    def __init__(self, task: Callable[[], Any]) -> None:
        self._task = task
        self._questions: SimpleQueue[_Question | None] = SimpleQueue()
        self.answers: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def run(self) -> Any:
        """Run the task: it is the thread's."""
        try:
            self.answers.get()()
            _here.turn = self
            return self._task()
        finally:
            _here.turn = None
            self._questions.put(None)

    def ask(self, question: _Question) -> Any:
        """Ask, and wait for the answer: it is the task's."""
        self._questions.put(question)
        return self.answers.get()()

    def go_on(self, answer: Callable[[], Any]) -> _Question | None:
        """Run up to the next question; None at the end."""
        self.answers.put(answer)
        return self._questions.get()


class _Abandoned(BaseException):
    """Ends a thread that nobody waits for any more."""


_here = threading.local()


def _in_turns(tasks: Sequence[Callable[[], Any]], pool: ThreadPoolExecutor) -> Any:
    """Run tasks from question to question, and give what they return."""
    turns = [_Turn(task) for task in tasks]
    try:
        futures = [pool.submit(turn.run) for turn in turns]
        answers: dict[_Turn, Callable[[], Any]] = dict.fromkeys(turns, _nothing)
        while answers:
            asked = {turn: turn.go_on(answer) for turn, answer in answers.items()}
            answers = _answers({t: q for t, q in asked.items() if q is not None})
        return [future.result() for future in futures]
    finally:
        for turn in turns:  # for an interrupt; who has ended does not look
            turn.answers.put(_abandon)


def _answers(asked: dict[_Turn, _Question]) -> dict[_Turn, Callable[[], Any]]:
    """Answer all questions, those for the same function together."""
    by_compute: dict[Hashable, list[_Turn]] = {}
    for turn, (compute, _) in asked.items():
        by_compute.setdefault(compute, []).append(turn)
    answers = dict.fromkeys(asked, _nothing)
    for turns in by_compute.values():
        compute, requests = asked[turns[0]][0], [asked[turn][1] for turn in turns]
        try:
            found = zip(turns, compute(requests), strict=True)
            answers |= {turn: partial(_identity, answer) for turn, answer in found}
        except Exception as error:
            log(WARNING, "Clients compute one by one: %s", error)
            for turn, request in zip(turns, requests, strict=True):
                answers[turn] = partial(_alone, compute, request)
    return answers


def _nothing() -> Any:
    return None


def _identity(answer: Any) -> Any:
    return answer


def _alone(compute: Compute, request: Any) -> Any:
    return compute([request])[0]


def _abandon() -> Any:
    raise _Abandoned


def _waves(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Split messages so that none of the parts has two for one node."""
    wave: dict[int, Message] = {}
    for message in messages:
        node = message.metadata.dst_node_id
        if node in wave or len(wave) == _AT_ONCE:
            yield list(wave.values())
            wave = {}
        wave[node] = message
    if wave:
        yield list(wave.values())
