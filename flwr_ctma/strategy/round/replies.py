"""A round of messages: the nodes that are asked, and their inspected replies."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from flwr_ctma.engine import threads as parallel
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.bounded_grid import REFUSED_REPLY
from flwr_ctma.messages.schema import Rejection, Reply, ReplySchema, quote
from flwr_ctma.strategy.round.tolerance import effective_f

__all__ = ["Accepted", "InspectedReplies", "Round", "read_one"]

Read = Callable[[RecordDict], Reply | Rejection]


@dataclass(frozen=True, eq=False)
class Accepted:
    """An accepted reply.

    Attributes
    ----------
    key : str
        Id of the message that it answers.
    node : int
        Node that was sent the message.
    reply : Reply
        Views of its arrays, and its metrics.
    message : Message
        The reply as it arrived.
    """

    key: str
    node: int
    reply: Reply
    message: Message


@dataclass
class InspectedReplies:
    """The replies of a round by result, each list in the order of the messages.

    Attributes
    ----------
    accepted : list of Accepted
        In an order that follows from the numbers in the replies, so that the same
        replies give the same bits.
    rejected : list of (node id, Rejection)
        Replies that do not count. `Rejection.proof` says whether that proves anything.
    missing : list of (node id, why)
        No reply, or an error. It may be an honest client's: slow, or out of memory.
    misreported : list of (node id, Rejection)
        Accepted, but not all of its metrics.
    ignored : int
        Replies to no message of this round, and replies after a first one.
    """

    accepted: list[Accepted] = field(default_factory=list)
    rejected: list[tuple[int, Rejection]] = field(default_factory=list)
    missing: list[tuple[int, str]] = field(default_factory=list)
    errors: list[Message] = field(default_factory=list)
    ignored: int = 0

    @property
    def nodes(self) -> list[int]:
        """The nodes whose replies were accepted."""
        return [one.node for one in self.accepted]

    @property
    def replies(self) -> list[Reply]:
        """The accepted replies."""
        return [one.reply for one in self.accepted]


@dataclass(eq=False)
class Round:
    """All that is known of a round between its configuration and its aggregation.

    Attributes
    ----------
    phase : str
        "train" or "evaluate".
    asked : list of Message
        The messages that are sent. The Grid writes an id into each as it sends it.
    f : int
        The most malicious nodes among the asked and the excluded ones.
    read : callable
        Inspects the content of a reply.
    arrays : ArrayRecord
        The model of the server when the round began.
    schema : ReplySchema | None
        The arrays that were sent; None in an evaluation.
    rows : RoundRows | None
        Where the backend holds the rows of the replies.
    violators : list of node ids
        Not asked, after so many proofs and faults that each of them counts as one of
        the f.
    suspects : list of node ids
        Not asked by the verdict of a detector, which proves nothing.
    reference : callable
        Return the row that the rule trusts or starts from; None if there is none.
    """

    phase: str
    asked: list[Message]
    f: int
    read: Read
    arrays: ArrayRecord = field(default_factory=ArrayRecord)
    schema: ReplySchema | None = None
    rows: Any = None
    violators: list[int] = field(default_factory=list)
    suspects: list[int] = field(default_factory=list)
    reference: Callable[[], list[NDArray[Any]] | None] = lambda: None
    _inspected: dict[str, "_Inspected"] = field(default_factory=dict)

    @property
    def excluded(self) -> list[int]:
        """The nodes that are not asked."""
        return [*self.violators, *self.suspects]

    @property
    def nodes(self) -> dict[str, int]:
        """The node of each message, by the id of the message.

        Raises
        ------
        ValueError
            If the messages have no ids of their own.
        """
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in self.asked}
        if len(nodes) < len(self.asked):
            raise parameter_error(
                "messages",
                "sent, each with an id of its own",
                list(nodes),
                "Use a Grid that writes ids into the messages it sends, as Flower's.",
            )
        return nodes

    def receive(self, replies: Iterable[Message]) -> None:
        """Inspect replies while others are still missing."""
        nodes = self.nodes
        known = (r for r in replies if r.metadata.reply_to_message_id in nodes)
        self._inspect(known, waiting=True)

    def inspect(self, replies: Iterable[Message]) -> InspectedReplies:
        """Inspect each reply on its own, and sort the replies by result.

        A reply belongs to the node that was sent the message it answers. Its own
        source is not used: Flower reports a node that died as node 1.
        """
        nodes, found = self.nodes, InspectedReplies()
        first: dict[str, Message] = {}
        for reply in replies:
            key = reply.metadata.reply_to_message_id
            if key in nodes and key not in first:
                first[key] = reply
            else:
                found.ignored += 1
        self._inspect(first.values())
        for key, node in nodes.items():
            inspected = self._inspected.get(key) if key in first else None
            result = inspected.result if inspected else "no reply"
            if isinstance(result, Reply):
                found.accepted.append(Accepted(key, node, result, first[key]))
            elif isinstance(result, Rejection):
                found.rejected.append((node, result))
            else:
                found.missing.append((node, result))
                found.errors += [first[key]] if key in first else []
        found.accepted.sort(key=lambda accepted: accepted.reply.sample)
        return found

    def effective_f(self, found: InspectedReplies) -> int | None:
        """Return f for the rule, or None if too few replies are accepted."""
        proven, faulty = self.evidence(found)
        return effective_f(self.f, len(found.accepted), proven, faulty)

    def evidence(self, found: InspectedReplies) -> tuple[int, int]:
        """Return the numbers of proofs and of faults; a violator is a proof."""
        proven = sum(rejection.proof for _, rejection in found.rejected)
        faulty = sum(rejection.fault for _, rejection in found.rejected)
        return proven + len(self.violators), faulty

    def _inspect(self, replies: Iterable[Message], waiting: bool = False) -> None:
        """Inspect the replies that are new, or have changed since they arrived."""
        fresh: dict[str, Message] = {}
        for reply in replies:
            key = reply.metadata.reply_to_message_id
            known = self._inspected.get(key)
            if known is None or not known.is_of(reply):
                fresh.setdefault(key, reply)
        results = parallel.run(lambda r: read_one(r, self.read), fresh.values())
        for (key, reply), result in zip(fresh.items(), results, strict=True):
            self._inspected[key] = _Inspected(result, _parts(reply))
        if self.rows is not None:
            good = zip(fresh, results, strict=True)
            new = {key: result for key, result in good if isinstance(result, Reply)}
            self.rows.add(new, waiting)


@dataclass(frozen=True, eq=False)
class _Inspected:
    """The result of an inspection, and the objects that it inspected."""

    result: Reply | Rejection | str
    parts: list[Any]

    def is_of(self, reply: Message) -> bool:
        """Whether a reply holds the same objects: a wrapper may have exchanged some."""
        parts = _parts(reply)
        return len(parts) == len(self.parts) and all(map(_is, parts, self.parts))


def _is(a: object, b: object) -> bool:
    return a is b


def _parts(reply: Message) -> list[Any]:
    if not reply.has_content():
        return [reply]
    try:
        records = [*reply.content.values()]
        arrays = [record for record in records if isinstance(record, ArrayRecord)]
        data = [array.data for record in arrays for array in record.values()]
    except Exception:
        return [object()]  # what breaks here breaks the inspection as well
    return [*records, *data]


def read_one(reply: Message, read: Read) -> Reply | Rejection | str:
    """Return an inspected reply, a rejection, or the reason why there is nothing."""
    try:
        if reply.has_error():
            if reply.error.code == REFUSED_REPLY:
                return Rejection("undecodable", quote(reply.error.reason))
            return f"error {reply.error.code}: {quote(reply.error.reason)}"
        return read(reply.content)
    except MemoryError:
        return "no memory on the server to read the reply"
    except Exception as error:
        # Any fault that the inspection does not foresee costs this reply alone.
        return Rejection("malformed", f"{type(error).__name__}: {quote(error)}")
