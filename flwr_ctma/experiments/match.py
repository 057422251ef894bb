"""One run of an app with malicious clients and a robust strategy."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy

from flwr_ctma.attacks import iter_attacks
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.app import App
from flwr_ctma.experiments.interposition import fixed_sampling, wrapped_strategies
from flwr_ctma.experiments.intervals import tail_mean
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.robust import RobustStrategy
from flwr_ctma.strategy.wrappers.attacked import AttackedStrategy
from flwr_ctma.strategy.wrappers.base import inside
from flwr_ctma.strategy.wrappers.observed import Observed
from flwr_ctma.tracking.ledger import Ledger

__all__ = [
    "Match",
    "MatchResult",
    "match_config",
    "match_from_json",
    "metric_values",
    "run_match",
]

_STATUSES = ("finished", "diverged", "crashed", "undefined")


@dataclass(frozen=True)
class Match:
    """One run of a tournament.

    Attributes
    ----------
    aggregator : str
        The rule, or `fedavg` for the app's strategy as it is.
    attack : str
    num_malicious : int
    seed : int
    """

    aggregator: str
    attack: str
    num_malicious: int
    seed: int


@dataclass(frozen=True)
class MatchResult:
    """The result of a match.

    Attributes
    ----------
    value : float or None
        The metric, mean of the last evaluations; None unless the match finished.
    seconds : float
    status : str
        "finished"; "diverged": an evaluation gave no finite number; "crashed": the run
        raised an exception; "undefined": the rule is undefined for so many malicious
        clients, and nothing was run. A match that diverged or crashed is the worst case
        of its rule.
    reason : str
        Why there is no value.
    auc : float or None
        How well the ledger tells attackers from honest nodes; see `Ledger.auc`. None
        without attackers or without a ledger.
    true_suspects : int or None
        Malicious nodes that the ledger suspects after the last round.
    false_suspects : int or None
        Honest nodes that it suspects.

    Raises
    ------
    ValueError
        For an unknown status, and for a value that does not fit the status.
    """

    value: float | None
    seconds: float
    status: str = "finished"
    reason: str = ""
    auc: float | None = None
    true_suspects: int | None = None
    false_suspects: int | None = None

    def __post_init__(self) -> None:
        if self.status not in _STATUSES:
            allowed = f"one of {', '.join(_STATUSES)}"
            raise parameter_error("status", allowed, self.status)
        finished = self.status == "finished"
        if finished and not (_is_number(self.value) and math.isfinite(self.value or 0)):
            raise parameter_error("value", "a finite number", self.value)
        if not finished and self.value is not None:
            expected = f"None, as the match is {self.status}"
            raise parameter_error("value", expected, self.value)

    @property
    def is_worst_case(self) -> bool:
        """Whether the match diverged or crashed."""
        return self.status in ("diverged", "crashed")


def match_from_json(line: Mapping[str, Any]) -> tuple[Match, MatchResult]:
    """Return the match and the result that a JSON object holds.

    Raises
    ------
    LookupError, TypeError, ValueError
        If a field is missing or does not hold what a match holds.
    """
    match = Match(**{field.name: line[field.name] for field in fields(Match)})
    known = {f.name: line[f.name] for f in fields(MatchResult) if f.name in line}
    numbers, texts = (match.num_malicious, match.seed), (match.aggregator, match.attack)
    if not all(map(_is_number, numbers)) or not all(isinstance(t, str) for t in texts):
        raise TypeError("a field of the match has the wrong type")
    return match, MatchResult(**known)


def run_match(
    match: Match,
    app: App,
    run_config: Mapping[str, Any],
    num_nodes: int,
    metric: str,
    last: int = 1,
    kind: type[InProcessGrid] = InProcessGrid,
) -> MatchResult:
    """Run an app once under a rule and an attack; see `Tournament`.

    Raises
    ------
    ValueError
        If the app starts no strategy of Flower's Message API, waits for more nodes than
        there are, or does not report the metric.
    """
    began = time.monotonic()
    server_app, client_app = app.load()
    unsupported = parameter_error(
        "app",
        "an app whose ServerApp starts a strategy of Flower's Message API",
        str(app),
        "Strategies of `flwr.server.strategy` are not supported here.",
    )
    if getattr(server_app, "_server_fn", None):
        raise unsupported
    byzantine = ByzantineMod(match.attack, match.num_malicious, match.seed)
    if not any(a.needs_malicious for a in iter_attacks(byzantine.attack)):
        client_app = _TrainMaliciousOnce(client_app, byzantine)
    config = match_config(run_config, num_nodes, match.seed)
    grid = kind(byzantine.around(client_app), num_nodes, config)
    lines: list[dict[str, Any]] = []
    ledgers: list[Ledger] = []

    def wrap(strategy: Strategy) -> Strategy:
        lines.clear()
        ledgers.clear()
        wrapped, ledger = _defended(strategy, match, num_nodes)
        ledgers.extend([ledger] if ledger else [])
        return Observed(wrapped, lines.append)

    with fixed_sampling(match.seed), wrapped_strategies(wrap) as started:
        server_app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), config))
    if not started:
        raise unsupported
    value = tail_mean(metric_values(lines, metric), last)
    seconds = time.monotonic() - began
    if math.isnan(value):
        reason = f"The metric `{metric}` is not finite in the last evaluations."
        return MatchResult(None, seconds, "diverged", reason)
    if not ledgers:
        return MatchResult(value, seconds)
    attacked = match.attack != "none"
    malicious = set(grid.get_node_ids()[: match.num_malicious if attacked else 0])
    suspects = set(ledgers[0].suspects())
    return MatchResult(
        value,
        seconds,
        auc=ledgers[0].auc(malicious),
        true_suspects=len(suspects & malicious),
        false_suspects=len(suspects - malicious),
    )


def match_config(
    run_config: Mapping[str, Any], num_nodes: int, seed: int
) -> UserConfig:
    """Return the run-config of a match, in which the app itself attacks nobody."""
    replaced: UserConfig = {
        "seed": seed,
        "num-nodes": num_nodes,
        "attack": "none",
        "num-malicious-nodes": 0,
    }
    config: UserConfig = dict(run_config)
    return config | {key: replaced[key] for key in replaced.keys() & config.keys()}


def metric_values(lines: Sequence[Mapping[str, Any]], metric: str) -> list[float]:
    """Return a metric of the trained model, by evaluation.

    Parameters
    ----------
    lines : sequence of Mapping[str, Any]
        One for each round, as `Observed` writes them. Round 0 is left out.
    metric : str
        As the server reports it, or else the clients.

    Raises
    ------
    ValueError
        If neither the server nor the clients report the metric.
    """
    trained = [line for line in lines if line["round"] > 0]
    for name in (metric, f"clients-{metric}"):
        found = [line[name] for line in trained if name in line]
        if found:
            return [_number(value) for value in found]
    names = {
        name.removeprefix("clients-")
        for line in trained
        for name, value in line.items()
        if isinstance(value, float) and not name.endswith("seconds")  # of the run
    }
    expected = f"a metric that the app reports: {', '.join(sorted(names))}"
    raise parameter_error("metric", expected, metric)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _defended(
    strategy: Strategy, match: Match, num_nodes: int
) -> tuple[Strategy, Ledger | None]:
    """Wrap a strategy in the rule and the attack of a match."""
    (*_, innermost) = inside(strategy)
    needed = getattr(innermost, "min_available_nodes", 0)
    if needed > num_nodes:
        expected = f"at least {needed}, which the app's strategy waits for"
        raise parameter_error("num-nodes", expected, num_nodes)
    if match.aggregator == "fedavg":
        return AttackedStrategy(innermost, match.attack, seed=match.seed), None
    robust = RobustStrategy(
        innermost, match.aggregator, num_malicious_nodes=match.num_malicious
    )
    return AttackedStrategy(robust, match.attack, seed=match.seed), robust.ledger


class _TrainMaliciousOnce(ClientApp):
    """Train each malicious client once, then repeat its first reply.

    Colluders replace the arrays of the reply; the rest is the same in every round.
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
