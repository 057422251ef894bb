"""Callbacks that get a line for each round."""

import copy
import time
from collections.abc import Callable, Sequence
from logging import WARNING
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from flwr_ctma.compat import log
from flwr_ctma.messages.bounded_grid import sent_bytes
from flwr_ctma.strategy.wrappers.base import StrategyWrapper

__all__ = ["Callback", "Observed"]

Callback = Callable[[dict[str, Any]], object]
"""It takes the line of a round: plain values by name."""


class Observed(StrategyWrapper):
    """Call functions after every round with a line about it; change nothing.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    *callbacks : Callable[[dict[str, Any]], object]
        Each is called with a line after every round. A callback that raises costs a
        warning, not the run.

    Notes
    -----
    A line holds, as far as known: `round`; the metrics of the server by their names;
    `asked`, `missing`, `rejected`, `trimmed`, `suspected`, `misreporting`, which are
    lists of nodes; metrics of training by their names, and those of the clients'
    evaluation with the prefix `clients-`; `seconds`; `aggregation-seconds`, the CPU
    time of the aggregation in this process; `bytes-sent` and `bytes-received` in
    arrays.

    Its place in a chain of wrappers does not matter: the line is about the messages,
    replies and metrics of the outermost strategy.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from flwr_ctma.tracking.run_folder import RunFolder
    >>> folder = RunFolder(Path(tempfile.mkdtemp()))
    >>> folder.begin({"aggregator": "fedavg"})
    >>> strategy = Observed(FedAvg(), folder.append)
    """

    end_order = 1
    needs_run = True

    def __init__(self, strategy: Strategy, *callbacks: Callback) -> None:
        super().__init__(strategy)
        self.callbacks = callbacks
        self._asked: list[Message] = []
        self._line: dict[str, Any] = {}
        self._since = time.monotonic()

    def begin_phase(self, phase: str, server_round: int, config: ConfigRecord) -> None:
        """Start the clock of the round."""
        if phase == "train":
            self._since = time.monotonic()

    def configured(self, phase: str, messages: Sequence[Message]) -> None:
        """Note the nodes that are asked, and the size of the messages."""
        if phase == "train":
            self._asked = [*messages]
            nodes = [message.metadata.dst_node_id for message in messages]
            self._line = {"asked": nodes, "bytes-sent": sent_bytes(messages)}
        else:
            sent = self._line.get("bytes-sent", 0)
            self._line["bytes-sent"] = sent + sent_bytes(messages)

    def aggregated(
        self, phase: str, replies: Sequence[Message], metrics: MetricRecord | None
    ) -> None:
        """Note the nodes that answered, and the metrics of the clients."""
        if phase == "evaluate":
            for key, value in (metrics or {}).items():
                self._line[f"clients-{key}"] = value
            return
        answered = {
            reply.metadata.reply_to_message_id
            for reply in replies
            if reply.has_content()
        }
        self._line["missing"] = [
            message.metadata.dst_node_id
            for message in self._asked
            if message.metadata.message_id not in answered
        ]
        self._line["bytes-received"] = sent_bytes(replies)
        if self._run is not None:
            self._line["aggregation-seconds"] = self._run.aggregation_seconds
        # No metric of a client hides an entry. A round that asked nobody has none.
        own = {*self._line} if self._asked else set()
        for key, value in (metrics or {}).items():
            name = key.removeprefix("nodes-")
            if name != key or name not in own:
                self._line[name] = value

    def end_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Add the metrics of the server, and call the callbacks with the line."""
        if self._line:
            self._line["seconds"] = time.monotonic() - self._since
        known = {**(metrics or {}), **self._line}
        known.pop("round", None)
        line = {"round": server_round, **known}
        self._line = {}
        for callback in self.callbacks:
            try:
                callback(copy.deepcopy(line))  # no callback changes that of another
            except Exception as error:
                log(WARNING, "%r: %s: %s", callback, type(error).__name__, error)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a line is complete before a round is saved."""
        return {}
