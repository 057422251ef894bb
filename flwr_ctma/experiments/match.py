"""One run of an app whose clients are made malicious and whose strategy is wrapped."""

import contextlib
import importlib
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.attacks import iter_attacks
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.robust import RobustStrategy
from flwr_ctma.strategy.wrappers.attacked import AttackedStrategy
from flwr_ctma.strategy.wrappers.base import HookedStrategy, inside
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["Match", "MatchResult", "load", "read", "run_match"]


@dataclass(frozen=True)
class Match:
    """One run: a rule, the attack it meets, and by how many."""

    aggregator: str
    attack: str
    num_malicious: int
    seed: int


@dataclass(frozen=True)
class MatchResult:
    """How a match ended.

    Attributes
    ----------
    value : float or None
        The metric after the last round; None if the match cannot be played.
    seconds : float
    why : str
        Why it could not be played.
    auc : float or None
        How well the ledger tells who attacks: see `Ledger.auc`. None if nobody does, or
        nobody keeps a ledger.
    found : int or None
        How many of the malicious the ledger suspects in the end.
    alarms : int or None
        How many of the honest it suspects.
    """

    value: float | None
    seconds: float
    why: str = ""
    auc: float | None = None
    found: int | None = None
    alarms: int | None = None


def read(line: Mapping[str, Any]) -> tuple[Match, MatchResult]:
    """Read a match and its outcome, written as one mapping."""
    pairing = {field.name: line[field.name] for field in fields(Match)}
    known = {f.name: line[f.name] for f in fields(MatchResult) if f.name in line}
    return Match(**pairing), MatchResult(**known)


def load(app: str) -> tuple[ServerApp, ClientApp]:
    """Import an app: a folder, or `module:server_app,module:client_app`."""
    if ":" not in app:
        return FlowerApp(Path(app)).load()
    try:
        parts = [part.split(":") for part in app.split(",")]
        if "" not in sys.path:
            sys.path.insert(0, "")
        server_app, client_app = (
            getattr(importlib.import_module(module), name) for module, name in parts
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise parameter_error(
            "app",
            "a folder, or `module:server_app,module:client_app`",
            app,
            str(error),
        ) from error
    return server_app, client_app


def run_match(
    match: Match,
    app: str,
    run_config: Mapping[str, Any],
    num_nodes: int,
    metric: str,
    kind: type[InProcessGrid] = InProcessGrid,
) -> MatchResult:
    """Run an app once, under a rule and an attack; see `Tournament`."""
    began = time.monotonic()
    server_app, client_app = load(app)
    legacy = parameter_error(
        "app",
        "one whose ServerApp starts a strategy of the Message API",
        app,
        "Those of `flwr.server.strategy` are not.",
    )
    if getattr(server_app, "_server_fn", None):
        raise legacy
    byzantine = ByzantineMod(match.attack, match.num_malicious, match.seed)
    if not any(a.needs_malicious for a in iter_attacks(byzantine.attack)):
        client_app = _Idle(client_app, byzantine)
    config: UserConfig = dict(run_config)
    own: UserConfig = {
        "seed": match.seed,
        "num-nodes": num_nodes,
        "attack": "none",
        "num-malicious-nodes": 0,
    }
    config.update({key: own[key] for key in own.keys() & config.keys()})
    grid = kind(byzantine.around(client_app), num_nodes, config)
    with _sampling(match.seed), _defended(match, num_nodes) as ended:
        server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), config))
    if not ended:
        raise legacy
    result, ledger = ended[-1]
    value = _final(result, metric)
    seconds = time.monotonic() - began
    if ledger is None:
        return MatchResult(value, seconds)
    attacked = match.attack != "none"
    malicious = set(grid.get_node_ids()[: match.num_malicious if attacked else 0])
    suspects = set(ledger.suspects())
    return MatchResult(
        value,
        seconds,
        auc=ledger.auc(malicious),
        found=len(suspects & malicious),
        alarms=len(suspects - malicious),
    )


def _final(result: Result, metric: str) -> float:
    """Give a metric after the last round."""
    found: set[str] = set()
    for history in (
        result.evaluate_metrics_serverapp,
        result.evaluate_metrics_clientapp,
    ):
        if history:
            last = history[max(history)]
            if metric in last:
                return float(last[metric])  # type: ignore[arg-type]
            found |= set(last)
    raise parameter_error(
        "metric", f"one that the app reports: {sorted(found)}", metric
    )


class _Idle(ClientApp):
    """Spare malicious clients the training that nobody will see, but the first.

    Colluders put theirs in the place of its arrays; the rest is the same every time.
    """

    def __init__(self, app: ClientApp, byzantine: ByzantineMod) -> None:
        super().__init__()
        self._app, self._byzantine = app, byzantine
        self._first: dict[int, RecordDict] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        trains = message.metadata.message_type.partition(".")[0] == MessageType.TRAIN
        if not trains or not self._byzantine.is_malicious(context):
            return self._app(message, context)
        if context.node_id in self._first:
            return Message(self._first[context.node_id], reply_to=message)
        reply = self._app(message, context)
        if reply is not None and reply.has_content():
            self._first[context.node_id] = reply.content
        return reply


_Ended = Sequence[tuple[Result, Ledger | None]]


@contextlib.contextmanager
def _defended(match: Match, num_nodes: int) -> Iterator[_Ended]:
    """Let every strategy that is started run under a match's rule and attack.

    An app starts its strategy itself: the method it calls is the place to step in.
    """
    start, ended = Strategy.start, list[tuple[Result, Ledger | None]]()

    def start_defended(self: Strategy, *args: Any, **kwargs: Any) -> Result:
        (*_, strategy) = inside(self)
        needed = getattr(strategy, "min_available_nodes", 0)
        if needed > num_nodes:
            expected = f"at least {needed}: the app's strategy waits for so many"
            raise parameter_error("num-nodes", expected, num_nodes)
        ledger = None
        if match.aggregator != "fedavg":
            strategy = RobustStrategy(
                strategy, match.aggregator, num_malicious_nodes=match.num_malicious
            )
            ledger = strategy.ledger
        attacked = AttackedStrategy(strategy, match.attack, seed=match.seed)
        ended.append((start(attacked, *args, **kwargs), ledger))
        return ended[-1][0]

    own = HookedStrategy.start
    try:
        Strategy.start = HookedStrategy.start = start_defended  # type: ignore
        yield ended
    finally:
        Strategy.start, HookedStrategy.start = start, own  # type: ignore


@contextlib.contextmanager
def _sampling(seed: int) -> Iterator[None]:
    """Let Flower's strategies, which sample nodes with `random`, sample as ever."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
