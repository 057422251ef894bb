"""Waiting for replies no longer than a round must."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from time import monotonic, sleep

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.compat import DecodeError, log
from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.wrapper import GridWrapper
from flwr_ctma.strategy.round.tolerance import Tolerance, min_replies

__all__ = ["UNDECODABLE", "GracePeriod", "GracePeriodGrid"]

# What decoding raises at content that a modified SuperNode can upload.
UNDECODABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    DecodeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class GracePeriod:
    """How long to wait for the last replies: factor · T, within bounds.

    T is the time in which all but f replies came. It is at most what the slowest honest
    node took, so f silent or slow nodes cannot stretch it; and it is at least what the
    (n - 2f)-th honest node took, so f hasty ones shrink it to that and no further.

    Parameters
    ----------
    factor : float (default: 2.0)
        The last replies may come after 1 + factor times T.
    at_least : float (default: 10.0)
        Seconds.
    at_most : float (default: 600.0)
        Seconds.

    Raises
    ------
    ValueError
        If factor or at_least is negative, or at_most is below at_least.

    Examples
    --------
    >>> GracePeriod().grace(1.0), GracePeriod().grace(60.0), GracePeriod().grace(3600.0)
    (10.0, 120.0, 600.0)
    """

    factor: float = 2.0
    at_least: float = 10.0
    at_most: float = 600.0

    def __post_init__(self) -> None:
        for name in ("factor", "at_least"):
            if not getattr(self, name) >= 0:
                raise parameter_error(name, "at least 0", getattr(self, name))
        if not self.at_most >= self.at_least:
            raise parameter_error(
                "at_most", f"at least at_least = {self.at_least}", self.at_most
            )

    def grace(self, taken: float) -> float:
        """Seconds to wait for the last replies when the others took this long."""
        return min(max(self.factor * taken, self.at_least), self.at_most)


class GracePeriodGrid(GridWrapper):
    """A Grid that goes on without the last f replies when their grace is over.

    Where there are enough replies without it, a node that is silent round after round
    is waited for in the first of these rounds, the second, the fourth, the eighth and
    so on, so that in the end it costs no time. Once it answers all is as before.

    Up to f nodes that were connected and no longer are stay among those there are to
    ask: a strategy that waits until so many nodes are connected would wait for ever for
    one that is dead.

    Late replies are not pulled: each round asks for the replies to its own messages.
    What is not answered expires after twice the timeout, or the SuperLink would keep it
    for twelve hours, model and all.

    Content that cannot be decoded ends the run in Flower; here it costs the replies
    that were pulled with it, and from then on replies are pulled one by one.

    Parameters
    ----------
    grid : Grid
        The one to send and receive with.
    num_malicious_nodes : int | float
        As for `RobustStrategy`.
    grace_period : GracePeriod (default: GracePeriod())
        How long the grace is.
    arrived : callable, optional
        Is given the replies of each pull, while others are waited for.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from flwr_ctma.simulation.grid import InProcessGrid
    >>> grid = GracePeriodGrid(InProcessGrid(ClientApp(), 5), num_malicious_nodes=1)
    >>> list(grid.get_node_ids())
    [2, 3, 4, 5, 6]
    """

    def __init__(
        self,
        grid: Grid,
        num_malicious_nodes: int | float,
        grace_period: GracePeriod = GracePeriod(),
        arrived: Callable[[Sequence[Message]], None] | None = None,
    ) -> None:
        super().__init__(grid)
        self.grace_period = grace_period
        self._arrived = arrived
        self._tolerance = Tolerance(num_malicious_nodes)
        self._seen: dict[int, None] = {}
        self._most = 0
        self._missed: Counter[int] = Counter()
        self._one_by_one = False

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages, and pull replies until the last ones' grace is over."""
        messages = list(messages)
        if not messages:
            return []
        started = monotonic()
        deadline = started + (math.inf if timeout is None else timeout)
        if timeout is not None:
            for message in messages:
                message.metadata.ttl = min(message.metadata.ttl, 2 * timeout)
        keys = self.grid.push_messages(messages)
        nodes = {
            k: m.metadata.dst_node_id for k, m in zip(keys, messages, strict=False)
        }
        waiting = [key for key in nodes if key]
        spare = self._spare(len(messages))
        on_grace = False
        replies: list[Message] = []
        while waiting:
            found = self.pull_messages(waiting)
            replies += found
            answered = {reply.metadata.reply_to_message_id for reply in found}
            waiting = [key for key in waiting if key not in answered]
            now = monotonic()
            if found and self._arrived:
                self._arrived(found)
            if not on_grace and len(waiting) <= spare:
                on_grace = True
                deadline = min(deadline, now + self.grace_period.grace(now - started))
            enough = on_grace and len(replies) >= min_replies(spare)
            if enough and not any(self._awaits(nodes[key]) for key in waiting):
                break
            if not waiting or now >= deadline:
                break
            # A poll delays a round by a twentieth at most.
            pause = min(max((now - started) / 20, 0.05), 3.0)
            sleep(min(pause, deadline - now))
        late = [nodes[key] for key in waiting]
        if late:
            seconds = monotonic() - started
            log(INFO, "Going on without nodes %s after %.1f s", late, seconds)
        self._missed += Counter(late)
        for node in set(nodes.values()) - set(late):
            del self._missed[node]
        return replies

    def _awaits(self, node: int) -> bool:
        """Tell whether it was silent for 0, 1, 3, 7, … rounds: then wait once more."""
        return (self._missed[node] + 1).bit_count() == 1

    def _spare(self, asked: int) -> int:
        """Give f of the nodes asked, but not half of them."""
        connected = len(list(self.get_node_ids()))
        return min(self._tolerance.among(asked, connected), (asked - 1) // 2)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Pull replies; leave out those that cannot be decoded."""
        keys = list(message_ids)
        batches = [[key] for key in keys] if self._one_by_one else [keys]
        replies: list[Message] = []
        for batch in batches:
            try:
                replies += self.grid.pull_messages(batch)
            except UNDECODABLE as error:
                self._one_by_one = True
                log(
                    WARNING,
                    "A reply cannot be decoded (%s); from now on they are pulled one "
                    "by one.",
                    type(error).__name__,
                )
        return replies

    def get_node_ids(self) -> Iterable[int]:
        """Get the nodes that are connected, and up to f that were."""
        connected = dict.fromkeys(self.grid.get_node_ids())
        self._seen |= connected
        self._most = max(self._most, len(connected))
        lost = [node for node in self._seen if node not in connected]
        missing = min(self._most - len(connected), self._tolerance.of(self._most))
        return [*connected, *lost[-missing:]] if missing else [*connected]
