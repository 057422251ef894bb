"""Rounds that do not wait for the last replies longer than a grace period."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import INFO
from time import monotonic, sleep

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.bounded_grid import (
    UNDECODABLE,
    BoundedGrid,
    abandon_replies,
)
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.spec import check_fields
from flwr_ctma.strategy.round.tolerance import Tolerance, min_replies

__all__ = ["UNDECODABLE", "GracePeriod", "GracePeriodGrid"]


@dataclass(frozen=True)
class GracePeriod:
    """The time to wait for the last f replies: factor · T, within bounds.

    T is the time until all but f replies are in. It is at most the time of the slowest
    honest node, so f silent or slow nodes cannot stretch it. It is at least the time of
    the (n - 2f)-th honest node, so f hasty nodes can shrink it no further.

    Parameters
    ----------
    factor : float (default: 2.0)
        The last replies may come until (1 + factor) · T.
    at_least : float (default: 10.0)
        Seconds.
    at_most : float (default: 600.0)
        Seconds.

    Raises
    ------
    ValueError
        If factor or at_least is no number, or negative, or at_most is below at_least.

    Examples
    --------
    >>> GracePeriod().grace(1.0), GracePeriod().grace(60.0), GracePeriod().grace(3600.0)
    (10.0, 120.0, 600.0)
    """

    factor: float = 2.0
    at_least: float = 10.0
    at_most: float = 600.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("factor", "at_least"):
            if not 0 <= getattr(self, name) < math.inf:
                raise parameter_error(
                    name, "at least 0, and finite", getattr(self, name)
                )
        if not self.at_most >= self.at_least:
            raise parameter_error(
                "at_most", f"at least at_least = {self.at_least}", self.at_most
            )

    def grace(self, taken: float) -> float:
        """Return the seconds to wait, where all but f replies took this long."""
        return min(max(self.factor * taken, self.at_least), self.at_most)


class GracePeriodGrid(BoundedGrid):
    """A Grid that goes on without the last f replies when their grace period is over.

    A node that is silent round after round is waited for in the first of these rounds,
    the second, the fourth, the eighth and so on, where there are enough replies without
    its own. So in the end it costs no time. Once it answers, it is waited for again.

    Up to f nodes that have lost their connection remain among the nodes to ask: a
    strategy that waits until n nodes are connected would wait for a dead one for ever.

    A round ends when its grace period ends, whatever is still being uploaded. Late
    replies are dropped: each round pulls the replies to its own messages. A message
    that is not answered expires after twice the timeout; the SuperLink would keep it,
    with the model, for twelve hours.

    Replies that cannot be decoded, or are larger than `reply_limit` allows, are
    replaced by error replies; see `BoundedGrid`.

    Parameters
    ----------
    grid : Grid
        The Grid to send and receive with.
    num_malicious_nodes : int | float
        As for `RobustStrategy`.
    grace_period : GracePeriod (default: GracePeriod())
        How long to wait for the last f replies.
    on_arrival : callable, optional
        Is given the replies of each pull, while others are waited for.
    reply_limit : ReplyLimit (default: ReplyLimit())
        The memory that a reply may take.
    max_pulls : int | None (default: None)
        Replies that are pulled at the same time; None: all.

    Raises
    ------
    ValueError
        If a parameter is of another type, or out of range.

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
        on_arrival: Callable[[Sequence[Message]], None] | None = None,
        *,
        reply_limit: ReplyLimit = ReplyLimit(),  # noqa: B008, a frozen value
        max_pulls: int | None = None,
    ) -> None:
        super().__init__(grid, reply_limit, max_pulls)
        if not isinstance(grace_period, GracePeriod):
            raise parameter_error("grace_period", "a `GracePeriod`", grace_period)
        self.grace_period = grace_period
        self._on_arrival = on_arrival
        self._tolerance = Tolerance(num_malicious_nodes)
        self._seen: dict[int, None] = {}
        self._most = 0
        self._missed: Counter[int] = Counter()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages, and pull replies until the grace period is over."""
        messages = list(messages)
        if not messages:
            return []
        started = monotonic()
        deadline = started + (math.inf if timeout is None else timeout)
        if timeout is not None:
            for message in messages:
                message.metadata.ttl = min(message.metadata.ttl, 2 * timeout)
        keys = self.push_messages(messages)
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
            if found and self._on_arrival:
                self._on_arrival(found)
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
        abandon_replies(self, waiting)
        late = [nodes[key] for key in waiting]
        if late:
            seconds = monotonic() - started
            log(INFO, "Going on without nodes %s after %.1f s", late, seconds)
        self._missed += Counter(late)
        for node in set(nodes.values()) - set(late):
            del self._missed[node]
        return replies

    def _awaits(self, node: int) -> bool:
        """Return whether a node was silent for 0, 1, 3, 7, … rounds: wait once more."""
        return (self._missed[node] + 1).bit_count() == 1

    def _spare(self, asked: int) -> int:
        """Return f of the nodes that are asked, but less than half of them."""
        connected = len(list(self.get_node_ids()))
        return min(self._tolerance.among(asked, connected), (asked - 1) // 2)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected, and up to f that were."""
        connected = dict.fromkeys(self.grid.get_node_ids())
        self._most = max(self._most, len(connected))
        f = self._tolerance.of(self._most)
        lost = [node for node in self._seen if node not in connected]
        # A node that registers anew again and again leaves f ids at most.
        lost = lost[max(len(lost) - f, 0) :]
        known = {*lost, *connected}
        self._seen = dict.fromkeys(n for n in [*self._seen, *connected] if n in known)
        missing = min(self._most - len(connected), f)
        return [*connected, *lost[-missing:]] if missing else [*connected]
