"""Callbacks that get a line for each round."""

import time
from collections.abc import Callable, Iterable
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_ctma.compat import log
from flwr_ctma.strategy.round.report import bytes_of
from flwr_ctma.strategy.wrappers.base import StrategyWrapper

__all__ = ["Callback", "Observed"]

Callback = Callable[[dict[str, Any]], object]
"""A function of the line of a round: plain values by name."""


class Observed(StrategyWrapper):
    """Call functions with a line for every round; change nothing.

    Parameters
    ----------
    strategy : Strategy
        Any strategy that works in rounds.
    *callbacks : Callable[[dict[str, Any]], object]
        Each is called with a line after every round. If one raises, the log has a
        warning, and the run goes on.

    Notes
    -----
    A line has, where they are known: `round`; the metrics of the server, by their
    names; the lists of nodes `asked`, `missing`, `rejected`, `trimmed`, `suspected` and
    `misreporting`; the metrics of training by their names; those of the clients'
    evaluation with the prefix `clients-`; `seconds`; `bytes-sent` and `bytes-received`,
    in arrays.

    Put `Checkpointed` outside: the lines of a resumed run then continue.

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

    def __init__(self, strategy: Strategy, *callbacks: Callback) -> None:
        super().__init__(strategy)
        self.callbacks = callbacks
        self._asked: list[Message] = []
        self._line: dict[str, Any] = {}
        self._since = time.monotonic()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Record the nodes that are asked."""
        self._since = time.monotonic()
        self._asked = list(super().configure_train(server_round, arrays, config, grid))
        self._line = {
            "asked": [message.metadata.dst_node_id for message in self._asked],
            "bytes-sent": bytes_of(self._asked),
        }
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record the replies and the metrics."""
        replies = [*replies]
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
        self._line["bytes-received"] = bytes_of(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        # A client's metric does not replace one of ours. If Flower's loop asked nobody,
        # the strategy inside counted, and its numbers are taken.
        ours = {*self._line} if self._asked else set()
        for key, value in (metrics or {}).items():
            name = key.removeprefix("nodes-")
            if name != key or name not in ours:
                self._line[name] = value
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Record the bytes that are sent."""
        asked = list(super().configure_evaluate(server_round, arrays, config, grid))
        self._line["bytes-sent"] = self._line.get("bytes-sent", 0) + bytes_of(asked)
        return asked

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Record the metrics of the clients."""
        metrics = super().aggregate_evaluate(server_round, replies)
        for key, value in (metrics or {}).items():
            self._line[f"clients-{key}"] = value
        return metrics

    def close_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Add the metrics of the server, and call the callbacks."""
        if self._line:
            self._line["seconds"] = time.monotonic() - self._since
        known = {**(metrics or {}), **self._line}
        known.pop("round", None)
        line = {"round": server_round, **known}
        self._line = {}
        for callback in self.callbacks:
            try:
                callback(line)
            except Exception as error:
                log(WARNING, "%r: %s: %s", callback, type(error).__name__, error)
