"""Recompute the rounds of an audit trail from the replies that were kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.robust import RobustStrategy
from flwr_ctma.strategy.wrappers.audited import encode, not_rebuilt, stored_replies
from flwr_ctma.strategy.wrappers.run import Hooks, Run, inside
from flwr_ctma.tracking.audit import AuditError
from flwr_ctma.tracking.detectors import Exclusion

__all__ = ["rebuild", "replay"]


def replay(
    file: Path, entries: Sequence[Mapping[str, Any]], strategy: Strategy | None = None
) -> int:
    """Recompute every round of a trail, to the bit.

    Parameters
    ----------
    file : Path
        The trail; the contents are beside it.
    entries : sequence of dict
        Of `read_trail`.
    strategy : Strategy | None (default: None)
        A new strategy with the settings of the run. If None, it is built from the first
        entry, which is possible for `RobustStrategy` around a strategy of Flower.

    Returns
    -------
    int
        How many rounds were recomputed.

    Raises
    ------
    AuditError
        If a round has another result or other verdicts, if a content is missing or was
        replaced, or if the strategy cannot be built.

    Notes
    -----
    A run that was resumed in another process, or that excluded nodes for replies to
    evaluation, has state that the trail does not hold.
    """
    strategy = rebuild(entries[0]) if strategy is None else strategy
    rounds = [entry for entry in entries if entry["kind"] == "round"]
    nodes = {
        node: None
        for entry in rounds
        for node in (*entry["connected"], *[n for n, _ in entry["sent"]])
    }
    grid = _Replies([*nodes])
    grid_of_run: Grid = grid
    for part in inside(strategy):
        if isinstance(part, Hooks):
            grid_of_run = part.prepare_grid(grid_of_run, entries[0]["num-rounds"])
    with Run(strategy, grid_of_run, ArrayRecord()):  # a failed round fails no replay
        script = _Script([*inside(strategy)][-1])
        before: str | None = None
        for entry in rounds:
            number = entry["round"]
            contents = [
                (node, stored_replies(file, sha)) for node, sha in entry["sent"]
            ]
            if not contents:
                continue
            grid.begin(file, entry)
            shown = contents[0][1]
            script.messages = [
                Message(content, grid.id_of(node), "train")
                for node, content in (
                    *contents,
                    *[(n, shown) for n in entry["excluded"]],
                )
            ]
            sent = next(iter(shown.array_records.values()))
            if before and sent != stored_replies(file, before)["arrays"]:
                raise AuditError(
                    f"Round {number} sent another model than the one before it"
                )
            before = entry["result"] or before
            asked = strategy.configure_train(number, sent, ConfigRecord(), grid_of_run)
            replies = grid_of_run.send_and_receive([*asked])
            arrays, metrics = strategy.aggregate_train(number, replies)
            _compare(file, entry, arrays)
            # Only `RobustStrategy` names the replies that it rejected.
            rejected: Any = metrics.get("nodes-rejected", []) if metrics else []
            told = {n for n, _, verdict in entry["replies"] if verdict == "rejected"}
            if {grid.id_of(node) for node in told} != {*rejected}:
                raise AuditError(f"Round {number} rejected other replies than it says")
    return len(rounds)


def rebuild(start: Mapping[str, Any]) -> Strategy:
    """Build the strategy that the first entry of a trail describes.

    Raises
    ------
    AuditError
        If it holds a strategy of neither Flower nor this project, a detector, or a
        `server_update`.
    """
    kind = not_rebuilt(start["strategies"])
    if kind:
        raise AuditError(
            f"{kind} cannot be built from the trail: recompute the rounds in Python, "
            "with `flwr_ctma.strategy.replay.replay(file, entries, strategy)`"
        )
    *outer, innermost = start["strategies"]
    built: Any = getattr(flower, innermost["kind"])(**innermost["settings"])
    for part in reversed(outer):
        if part["kind"] == "RobustStrategy":
            settings = {**part["settings"], "grace_period": None}
            if "exclusion" in settings:
                settings.pop("max_rejections", None)  # the exclusion holds it
                settings["exclusion"] = Exclusion(**settings["exclusion"])
            built = RobustStrategy(built, **settings)
    strategy: Strategy = built
    return strategy


def _compare(file: Path, entry: Mapping[str, Any], arrays: ArrayRecord | None) -> None:
    found = None if arrays is None else encode(RecordDict({"arrays": arrays}))
    told = entry["result"] and encode(stored_replies(file, entry["result"]))
    if found != told:
        raise AuditError(f"Round {entry['round']} has another result than it says")


class _Script:
    """Let a strategy ask whom the trail says, not whom it would sample."""

    def __init__(self, strategy: Any) -> None:
        self.messages: list[Message] = []
        self._configure = strategy.configure_train
        strategy.configure_train = self._configure_train

    def _configure_train(self, *args: Any) -> list[Message]:
        list(self._configure(*args))  # strategies keep what they need of the model
        return self.messages


class _Replies(InProcessGrid):
    """A grid whose nodes answer as they did."""

    def __init__(self, nodes: Sequence[int]) -> None:
        super().__init__(ClientApp(), max(len(nodes), 1))
        self._ids = dict(zip(nodes, super().get_node_ids(), strict=False))
        self._connected: list[int] = []
        self._contents: dict[int, RecordDict] = {}

    def id_of(self, node: int) -> int:
        """Return the id that stands for a node of the run."""
        return self._ids[node]

    def begin(self, file: Path, entry: Mapping[str, Any]) -> None:
        """Load the replies of a round."""
        self._connected = [self._ids[node] for node in entry["connected"]]
        self._contents = {}
        for node, digest, verdict in entry["replies"]:
            if digest and verdict not in ("ignored", "missing"):
                self._contents[self._ids[node]] = stored_replies(file, digest)

    def get_node_ids(self) -> list[int]:
        """Return the nodes that were connected in the round."""
        return self._connected

    def _answer(self, message: Message) -> Message | None:
        content = self._contents.get(message.metadata.dst_node_id)
        return None if content is None else Message(content, reply_to=message)
