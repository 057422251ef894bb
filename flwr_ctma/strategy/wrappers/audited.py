"""A signed record of what was sent, what came back, and what was made of it."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from logging import WARNING
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.wrappers.base import StrategyWrapper, inside, is_asynchronous
from flwr_ctma.tracking.audit import (
    AuditError,
    AuditTrail,
    load_key,
    naming_file,
)
from flwr_ctma.tracking.detectors import Exclusion

__all__ = ["Audited", "decode", "encode", "not_rebuilt", "stored_replies"]

_TRANSPARENT = ("Observed", "DivergenceGuard")  # they change no model of a round

_RECORDS = {
    "arrays": ArrayRecord,
    "metrics": MetricRecord,
    "configs": ConfigRecord,
}


class Audited(StrategyWrapper):
    """Write one signed line per round to an audit trail.

    A line has the hash of every message that was sent, the hash of every reply with its
    verdict (`counted`, `trimmed`, `rejected`, `missing` or `ignored`), and the hash of
    the model that the round led to. `flwr-ctma verify FILE` checks the trail.

    Parameters
    ----------
    strategy : Strategy
        Any strategy that works in rounds.
    file : str | Path
        The trail, one JSON object a line. An existing one is continued.
    key : Ed25519PrivateKey | str | Path
        The key that signs, or a PEM file with it:
        `openssl genpkey -algorithm ed25519 -out key.pem`.
    keep_replies : bool (default: False)
        Keep what was sent and all replies beside the trail, in `FILE.contents`, so that
        every round can be recomputed. This takes n models a round on the disk.

    Raises
    ------
    ValueError
        If the key is no Ed25519 key, or the strategy inside is asynchronous; with
        keep_replies also for a strategy inside that rolls back, as the evaluation on
        which it does so is not recorded.
    AuditError
        If the file holds something else, or a trail that another key signed.

    Notes
    -----
    A trail shows that nobody changed it since it was signed. It does not show that the
    server told the truth when it signed.

    Verdicts are those of `RobustStrategy`; inside another strategy all replies count.
    Put `Checkpointed` outside of it: a resumed run then continues the trail.

    With keep_replies, a warning before the run names a strategy or detector inside that
    `flwr-ctma verify` cannot build from the trail. `flwr_ctma.strategy.replay.replay`
    recomputes such rounds with a strategy that is given to it.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from flwr_ctma.strategy import RobustStrategy
    >>> robust = RobustStrategy(FedAvg(), num_malicious_nodes=3)
    >>> key = Ed25519PrivateKey.generate()
    >>> strategy = Audited(robust, Path(mkdtemp()) / "audit.jsonl", key)
    """

    needs_all_replies = True

    def __init__(
        self,
        strategy: Strategy,
        file: str | Path,
        key: Ed25519PrivateKey | str | Path,
        keep_replies: bool = False,
    ) -> None:
        super().__init__(strategy)
        if is_asynchronous(strategy):
            raise parameter_error(
                "strategy", "one that works in rounds", type(strategy).__name__
            )
        if keep_replies and any(
            getattr(p, "rollback", False) for p in inside(strategy)
        ):
            raise parameter_error(
                "keep_replies",
                "False around a strategy that rolls back",
                keep_replies,
                "A rollback depends on evaluations, which are not recorded.",
            )
        if isinstance(key, str | Path):
            key = load_key(Path(key))
        if not isinstance(key, Ed25519PrivateKey):
            raise parameter_error("key", "an Ed25519 key or a PEM file", type(key))
        self.file = Path(file)
        self.keep_replies = keep_replies
        self._trail = AuditTrail(self.file, key)
        self._num_rounds = 0
        self._connected: list[int] = []
        self._asked: list[Message] = []

    def prepare_grid(self, grid: Grid, num_rounds: int) -> Grid:
        """Record the number of rounds, and say what will not be recomputed."""
        self._num_rounds = num_rounds
        kind = not_rebuilt(self._strategies()) if self.keep_replies else None
        if kind:
            log(
                WARNING,
                "`flwr-ctma verify` will check the chain of %s, but not recompute its "
                "rounds: it cannot build %s. To recompute them, call "
                "`flwr_ctma.strategy.replay.replay` with a new strategy like this one.",
                self.file,
                kind,
            )
        return grid

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent to whom."""
        if self._trail.entries == 0:
            self._trail.append(
                {
                    "kind": "start",
                    "strategies": self._strategies(),
                    "num-rounds": self._num_rounds,
                    "replies-kept": self.keep_replies,
                }
            )
        self._connected = [int(node) for node in grid.get_node_ids()]
        self._asked = [*super().configure_train(server_round, arrays, config, grid)]
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy inside aggregate, and write the line of the round."""
        replies = [*replies]
        came = [(r.metadata.reply_to_message_id, self._store_reply(r)) for r in replies]
        arrays, metrics = super().aggregate_train(server_round, replies)
        told = metrics or MetricRecord()
        asked = {m.metadata.message_id: m.metadata.dst_node_id for m in self._asked}
        lines: list[tuple[int | None, str | None, str]] = []
        for key, digest in came:
            node = asked.pop(key, None)
            lines.append((node, digest, "ignored" if node is None else "counted"))
        lines += [(node, None, "missing") for node in asked.values()]
        verdicts = {
            node: verdict
            for verdict in ("trimmed", "rejected")
            for node in _nodes(told, verdict)
        }
        self._trail.append(
            {
                "kind": "round",
                "round": server_round,
                "connected": self._connected,
                "sent": [
                    (message.metadata.dst_node_id, self._store(encode(message.content)))
                    for message in self._asked
                ],
                "excluded": _nodes(told, "excluded"),
                "replies": [
                    (node, digest, _verdict(node, digest, verdict, verdicts))
                    for node, digest, verdict in lines
                ],
                "result": None
                if arrays is None
                else self._store(encode(_model(arrays))),
            }
        )
        return arrays, metrics

    def end_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        """End the trail after the last round."""
        last = self._trail.last or {}
        ended = last.get("kind") == "round" and server_round >= self._num_rounds > 0
        if ended:
            self._trail.append({"kind": "end"})

    def state_dict(self) -> dict[str, Any]:
        """Return no state: the trail is in its file."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the trail in the file."""

    def _strategies(self) -> list[dict[str, Any]]:
        return [_describe(part) for part in inside(self.strategy)]

    def _store_reply(self, reply: Message) -> str | None:
        if not reply.has_content():
            return None
        try:
            data = encode(reply.content)
        except Exception:  # whatever a client makes of a record: no bytes, no hash
            return None
        return self._store(data)

    def _store(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if self.keep_replies:
            path = contents_of(self.file) / digest
            with naming_file(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    # A full disk or a kill leaves no part under the final name.
                    new = path.with_name(f".{digest}.new")
                    new.write_bytes(data)
                    new.replace(path)
        return digest


def not_rebuilt(strategies: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what cannot be built again from a trail, or None if all can.

    Parameters
    ----------
    strategies : sequence of dict
        From the first entry of a trail, the outermost first.
    """
    *outer, innermost = strategies
    if innermost["package"] != "flwr":
        return str(innermost["kind"])
    for part in outer:
        if part["kind"] not in ("RobustStrategy", *_TRANSPARENT):
            return str(part["kind"])
        if part["settings"].get("detector"):
            return f"the detector {part['settings']['detector']}"
        if part["settings"].get("server_update"):
            return f"the server_update {part['settings']['server_update']}"
    return None


def contents_of(file: Path) -> Path:
    """Return the folder with the contents that a trail refers to by their hashes."""
    return file.with_name(f"{file.name}.contents")


def stored_replies(file: Path, digest: str) -> RecordDict:
    """Read a content that was kept beside a trail.

    Raises
    ------
    AuditError
        If it is not there, or is not what the hash says.
    """
    try:
        data = (contents_of(file) / digest).read_bytes()
    except OSError as error:
        raise AuditError(f"The content {digest} is not there: {error}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise AuditError(f"The content {digest} was replaced by another one")
    return decode(data)


def encode(content: RecordDict) -> bytes:
    """Write records as bytes: equal records give equal bytes.

    The format is a JSON header with its length before it, then the data of all arrays.

    Examples
    --------
    >>> content = RecordDict({"metrics": MetricRecord({"loss": 0.5})})
    >>> decode(encode(content)) == content
    True
    """
    header: list[Any] = []
    payloads: list[bytes] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = []
            for key, array in record.items():
                data = bytes(memoryview(array.data))
                payloads.append(data)
                arrays.append(
                    [key, array.dtype, [*array.shape], array.stype, len(data)]
                )
            header.append([name, "arrays", arrays])
        else:
            kind = "metrics" if isinstance(record, MetricRecord) else "configs"
            header.append([name, kind, [[k, _packed(v)] for k, v in record.items()]])
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(8, "big"), text, *payloads])


def decode(data: bytes) -> RecordDict:
    """Read what `encode` wrote."""
    start = 8 + int.from_bytes(data[:8], "big")
    content = RecordDict()
    for name, kind, items in json.loads(data[8:start]):
        if kind == "arrays":
            arrays = ArrayRecord()
            for key, dtype, shape, stype, size in items:
                held = data[start : start + size]
                arrays[key] = Array(dtype, tuple(shape), stype, held)
                start += size
            content[name] = arrays
        else:
            content[name] = _RECORDS[kind]({key: _unpacked(v) for key, v in items})
    return content


def _packed(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return [_packed(item) for item in value] if isinstance(value, list) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes"])
    return [_unpacked(item) for item in value] if isinstance(value, list) else value


def _model(arrays: ArrayRecord) -> RecordDict:
    return RecordDict({"arrays": arrays})


def _nodes(metrics: MetricRecord, verdict: str) -> list[int]:
    nodes = metrics.get(f"nodes-{verdict}", [])
    return [int(node) for node in nodes] if isinstance(nodes, list) else []


def _verdict(
    node: int | None, digest: str | None, verdict: str, found: dict[int, str]
) -> str:
    if node is None or verdict != "counted":
        return verdict
    return found.get(node, "counted" if digest else "missing")


def _describe(part: Strategy) -> dict[str, Any]:
    """Name a strategy and its plain settings, to build it again."""
    settings: dict[str, Any] = {}
    for name in inspect.signature(type(part).__init__).parameters:
        value = vars(part).get(name)
        if name == "aggregator":
            settings[name] = str(value)
        elif name == "detector" and value is not vars(part).get("ledger"):
            settings[name] = type(value).__name__
        elif name == "server_update" and value is not None:
            settings[name] = getattr(value, "__qualname__", type(value).__name__)
        elif isinstance(value, Exclusion):
            settings[name] = {
                key: getattr(value, key)
                for key in inspect.signature(Exclusion).parameters
            }
        elif isinstance(value, tuple) and all(isinstance(v, str) for v in value):
            settings[name] = [*value]
        elif isinstance(value, bool | int | float | str):
            settings[name] = value
    package = type(part).__module__.partition(".")[0]
    return {"kind": type(part).__name__, "package": package, "settings": settings}
