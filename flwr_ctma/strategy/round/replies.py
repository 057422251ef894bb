"""A round of messages: who was asked, who answered, and which answers count."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from flwr_ctma.engine import threads as parallel
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.schema import Rejection, Reply, quote

__all__ = ["Round", "SortedReplies", "read_one"]

Read = Callable[[RecordDict], Reply | Rejection]


@dataclass
class SortedReplies:
    """What came back, by node, each list in the order in which nodes were asked.

    Attributes
    ----------
    accepted : list of (node id, Reply)
        In an order that follows from what they hold, so that the same replies give
        the same bits.
    rejected : list of (node id, Rejection)
        Replies that do not count. `Rejection.proof` says whether that proves anything.
    missing : list of (node id, why)
        No reply, or an error. It may be an honest client's: slow, or out of memory.
    misreported : list of (node id, Rejection)
        Accepted, but not all of its metrics.
    ignored : int
        Replies to no message of this round, and replies after a first one.
    """

    accepted: list[tuple[int, Reply]] = field(default_factory=list)
    rejected: list[tuple[int, Rejection]] = field(default_factory=list)
    missing: list[tuple[int, str]] = field(default_factory=list)
    misreported: list[tuple[int, Rejection]] = field(default_factory=list)
    ignored: int = 0

    @property
    def nodes(self) -> list[int]:
        """Whose replies were accepted."""
        return [node for node, _ in self.accepted]

    @property
    def replies(self) -> list[Reply]:
        """What was accepted."""
        return [reply for _, reply in self.accepted]


@dataclass(frozen=True)
class Round:
    """What was asked in a round, and of how many malicious nodes at most.

    Parameters
    ----------
    asked : list of Message
        The Grid writes an id into each when it sends it.
    f : int
        Malicious nodes there may be among those asked and those excluded.
    excluded : list of node ids
        Not asked, after `max_rejections` proofs and faults: that often a node breaks
        for good, so each of them counts as one of the f.
    """

    asked: list[Message]
    f: int
    excluded: list[int] = field(default_factory=list)

    def sort(self, replies: Iterable[Message], read: Read) -> SortedReplies:
        """Read every reply on its own and sort it by what became of it.

        A reply belongs to the node that the message it answers was sent to. What it
        says about its source is not used: Flower reports a node that died as node 1.

        Raises
        ------
        ValueError
            If the messages have no ids to tell the replies by.
        """
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in self.asked}
        if len(nodes) < len(self.asked):
            raise parameter_error(
                "messages",
                "sent, each with an id of its own",
                list(nodes),
                "Use a Grid that writes ids into the messages it sends, as Flower's.",
            )
        outcome = SortedReplies()
        first: dict[str, Message] = {}
        for reply in replies:
            key = reply.metadata.reply_to_message_id
            if key in nodes and key not in first:
                first[key] = reply
            else:
                outcome.ignored += 1
        answered = [key for key in nodes if key in first]
        reads = parallel.run(lambda key: read_one(first[key], read), answered)
        known = dict(zip(answered, reads, strict=True))
        for key, node in nodes.items():
            found = known.get(key, "no reply")
            if isinstance(found, Reply):
                outcome.accepted.append((node, found))
            elif isinstance(found, Rejection):
                outcome.rejected.append((node, found))
            else:
                outcome.missing.append((node, found))
        outcome.accepted.sort(key=lambda accepted: accepted[1].sample)
        return outcome


def read_one(reply: Message, read: Read) -> Reply | Rejection | str:
    """Read a reply: what counts, why it is rejected, or why there is nothing."""
    try:
        if reply.has_error():
            return f"error {reply.error.code}: {quote(reply.error.reason)}"
        return read(reply.content)
    except MemoryError:
        return "no memory on the server to read the reply"
    except Exception as error:
        # Whatever a client thinks of that the inspection did not: it costs this reply.
        return Rejection("malformed", f"{type(error).__name__}: {quote(error)}")
