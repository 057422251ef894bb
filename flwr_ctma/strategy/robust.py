"""Robust aggregation for any Flower strategy that averages."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from flwr_ctma.aggregators import Aggregator, Budget
from flwr_ctma.aggregators.base import parts
from flwr_ctma.compat import log
from flwr_ctma.engine.actors import Unavailable
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.schema import (
    BUFFER_KEYS,
    Rejection,
    Reply,
    ReplySchema,
    quote,
    read_metrics,
)
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.backends import Backend, RoundStore, parse_backend
from flwr_ctma.strategy.compatibility import check_compatible, resolve_aggregator
from flwr_ctma.strategy.grace_period import GracePeriod, GracePeriodGrid
from flwr_ctma.strategy.round.aggregate import Step, aggregate_replies
from flwr_ctma.strategy.round.aggregate_reply import build_aggregate_reply
from flwr_ctma.strategy.round.claims import claimed_budget, weight_of
from flwr_ctma.strategy.round.replies import Round, SortedReplies
from flwr_ctma.strategy.round.report import evidence, log_outcome, report
from flwr_ctma.strategy.round.selection import NodeSelection
from flwr_ctma.strategy.round.tolerance import effective_f
from flwr_ctma.strategy.wrappers.base import setting
from flwr_ctma.tracking.center import PreviousUpdate
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["RobustStrategy"]


class RobustStrategy(Strategy):
    """Let a strategy see one reply, made robustly from all of them.

    Every reply is inspected on its own; a bad one is rejected with its reason. The good
    ones, less the model that was sent, are aggregated by a rule. The strategy inside
    gets the result as the only reply of the round: FedAvg passes it on, FedAdam,
    FedYogi, FedAdagrad and FedAvgM apply their server optimiser to it.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of Flower's Message API that averages.
    aggregator : Aggregator | str (default: "ctma(gm)")
        The rule, or how it is spelled.
    num_malicious_nodes : int | float
        How many of the connected nodes may lie, break or fall silent: a count, or a
        share in [0, 0.5). Of nodes that are sampled, as many are expected in a round
        as samples hold with 99 % confidence over all rounds.
    weighted_by_key : str | None (default: None)
        Metric with which clients claim their weight, such as "num-examples". Claims are
        cut to the (f + 1)-th largest. All count the same in a round in which the f
        largest are half of all, and always if None.
    buffer_keys : Collection[str] (default: BUFFER_KEYS)
        Arrays that are not parameters, by the last part of their key: running
        statistics. They are aggregated on their own, by a trimmed mean, do not count in
        distances, and pass by the server optimiser; so do integers and booleans.
    max_rejections : int | None (default: None)
        After how many rejected replies a node is not asked again, though the strategy
        inside samples it: as if it were, and its reply rejected. At most f nodes of a
        round, those with the most. To be trimmed or silent is no violation.
    grace_period : GracePeriod | None (default: GracePeriod())
        How long `start` waits for the last f replies when the others are in; None: as
        long as Flower does. Inside another strategy, start that with a `GracePeriodGrid`.
    backend : Backend | str (default: "local")
        Where the rows of a round are held: "local", here, with the same bits in
        whatever order they come; "streaming", here, with inner products taken as they
        do; "ray", by the workers of a Ray cluster (a round in which those fail is
        skipped).

    Attributes
    ----------
    ledger : Ledger
        What each node did, and how suspicious that is.

    Raises
    ------
    ValueError
        If the strategy must see single replies, the rule needs a row that it can trust,
        or num_malicious_nodes is no count or share.

    Notes
    -----
    With f malicious nodes among those asked a round needs 2f + 1 good replies; each
    reply that is rejected lowers that by two, as it proves its sender one of the f. A
    round with fewer is skipped and the model stays. To bear f silent nodes as well as
    f liars, ask 3f + 1.

    What clients say about themselves moves no model, unless `weighted_by_key` lets it.
    Metrics are averaged by a trimmed mean, in which all clients count the same.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = RobustStrategy(FedAvg(), "ctma(cwmed)", num_malicious_nodes=3)
    >>> print(strategy.aggregator)
    ctma(cwmed)
    """

    needs_all_replies = True

    def __init__(
        self,
        strategy: Strategy,
        aggregator: Aggregator | str = "ctma(gm)",
        *,
        num_malicious_nodes: int | float,
        weighted_by_key: str | None = None,
        buffer_keys: Collection[str] = BUFFER_KEYS,
        max_rejections: int | None = None,
        grace_period: GracePeriod | None = GracePeriod(),  # noqa: B008, a frozen value
        backend: Backend | str = "local",
    ) -> None:
        check_compatible(strategy)
        self.strategy = strategy
        self.aggregator = resolve_aggregator(aggregator, weighted_by_key is not None)
        self.num_malicious_nodes = num_malicious_nodes
        self.weighted_by_key = weighted_by_key
        self.buffer_keys = tuple(buffer_keys)
        self.max_rejections = max_rejections
        if not isinstance(grace_period, GracePeriod | None):
            raise parameter_error(
                "grace_period", "a `GracePeriod`, or None", grace_period
            )
        self.grace_period = grace_period
        self.backend = parse_backend(backend)
        self.ledger = Ledger()
        self._center = PreviousUpdate()
        self._asking = NodeSelection(
            self.aggregator, num_malicious_nodes, max_rejections
        )
        self._starts_from_previous = any(
            part.needs_reference for part in parts(self.aggregator)
        )
        self._arrays_key: str = setting(strategy, "arrayrecord_key", "arrays")
        self._weight_key: str = setting(strategy, "weighted_by_key", "num-examples")
        self._arrays = ArrayRecord()
        self._sent: ReplySchema | None = None
        self._held: RoundStore | None = None
        self._training = self._evaluation = Round([], 0)
        self._previous: list[NDArray[Any]] | None = None

    @property
    def f(self) -> int:
        """Malicious nodes there may be among those last asked to train."""
        return self._training.f

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        log(INFO, "\t├──> Robust aggregation:")
        log(INFO, "\t│\t├── Aggregator: %s", self.aggregator)
        log(INFO, "\t│\t├── Malicious nodes: %s", self.num_malicious_nodes)
        log(
            INFO,
            "\t│\t├── Weighted by: %s",
            self.weighted_by_key or "nothing (uniform)",
        )
        log(INFO, "\t│\t└── Patience: %s", self.grace_period or "until the timeout")
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        *args: Any,
        **kwargs: Any,
    ) -> Result:
        """Run the rounds; see `Strategy.start`. They wait as `grace_period` says."""
        grid = self.prepare(grid, num_rounds)
        return super().start(grid, initial_arrays, num_rounds, *args, **kwargs)

    def prepare(self, grid: Grid, num_rounds: int) -> Grid:
        """Give the grid to run the rounds on: one that waits as `grace_period` says."""
        self._asking.expect(num_rounds)
        if self.grace_period and not isinstance(grid, InProcessGrid | GracePeriodGrid):
            known = (self.num_malicious_nodes, self.grace_period, self._arrive)
            return GracePeriodGrid(grid, *known)
        return grid

    def _arrive(self, replies: Sequence[Message]) -> None:
        if self._held:
            self._held.arrive(replies)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside sample nodes; remember what it sends to whom."""
        messages = self.strategy.configure_train(server_round, arrays, config, grid)
        self._training = self._asking.select("train", messages, grid, self.ledger)
        self._arrays = arrays
        if self._training.asked:
            records = self._training.asked[0].content.array_records
            sent = records.get(self._arrays_key, arrays)
            self._sent = ReplySchema(sent, self.buffer_keys)
            self._held = self.backend.begin(self._sent, self._read)
        return self._training.asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the good replies and let the strategy inside go on from there."""
        if self._sent is None or not self._training.asked:
            return None, None
        held, self._held = self._held, None
        outcome = self._training.sort(replies, self._read)
        f = self._bearable("train", self._training, outcome)
        if f is None:
            return self._arrays, self._report(self._training, outcome)
        try:
            budget = self.budget([r.metrics for r in outcome.replies], f)
            step = aggregate_replies(
                self.aggregator,
                self._sent,
                outcome.replies,
                budget,
                self._previous,
                held.place if held else None,
            )
        except (ValueError, Unavailable) as error:
            log(WARNING, "aggregate_train: Skipped. %s", error)
            return self._arrays, self._report(self._training, outcome)
        measured = self._sent.measured
        distances = self._center.distances(
            [[reply.rows[i] for i in measured] for reply in outcome.replies],
            self._sent.origin(measured),
        )
        self._center.keep(step.update)
        if self._starts_from_previous:
            self._previous = step.update
        else:
            step.update.clear()  # memory for a model, which the strategy inside needs
        records = {self._arrays_key: step.arrays}
        reply = build_aggregate_reply(
            self._training, outcome, f, self._weight_key, records
        )
        arrays, metrics = self.strategy.aggregate_train(server_round, [reply])
        if arrays is not None:
            arrays = self._sent.restore_dtypes_and_buffers(step.arrays, arrays)
        return arrays, self._report(
            self._training, outcome, metrics, step, f, distances
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside sample nodes; remember which."""
        messages = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        self._evaluation = self._asking.select("evaluate", messages, grid, self.ledger)
        return self._evaluation.asked

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the good metrics by a trimmed mean."""
        if not self._evaluation.asked:
            return None
        outcome = self._evaluation.sort(replies, read_metrics)
        f = self._bearable("evaluate", self._evaluation, outcome)
        if f is None:
            return self._report(self._evaluation, outcome)
        reply = build_aggregate_reply(self._evaluation, outcome, f, self._weight_key)
        metrics = self.strategy.aggregate_evaluate(server_round, [reply])
        return self._report(self._evaluation, outcome, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the ledger and the update before."""
        return {
            "ledger": self.ledger.to_rows(),
            "center": self._center.state_dict(),
            "previous": self._previous,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self.ledger = Ledger.from_rows(state["ledger"])
        self._center.load_state_dict(state["center"])
        self._previous = state["previous"]

    def _read(self, content: RecordDict) -> Reply | Rejection:
        if self._sent is None:
            return Rejection("malformed", "nothing was sent")
        found = self._sent.read(content)
        if self.weighted_by_key is None or isinstance(found, Rejection):
            return found
        if math.isnan(weight_of(found.metrics, self.weighted_by_key)):
            key = quote(self.weighted_by_key)
            return Rejection("weight", f"{key} is not a finite number above zero")
        return found

    def _bearable(
        self, phase: str, round_: Round, outcome: SortedReplies
    ) -> int | None:
        """Give f for the rule, or None if too few replies are good; and log them."""
        log_outcome(phase, round_, outcome)
        proven, faulty = evidence(round_, outcome)
        return effective_f(round_.f, len(outcome.accepted), proven, faulty)

    def budget(self, metrics: Sequence[MetricRecord], f: int) -> Budget:
        """Tell the rule what may be Byzantine: rows, or weight if clients claim it."""
        return claimed_budget(metrics, f, self.weighted_by_key)

    def _report(
        self,
        round_: Round,
        outcome: SortedReplies,
        metrics: MetricRecord | None = None,
        step: Step | None = None,
        f: int = 0,
        distances: NDArray[Any] | None = None,
    ) -> MetricRecord:
        """Enter what came of the replies in the ledger, and add it to the metrics."""
        trimmed = [outcome.nodes[i] for i in step.trimmed] if step else []
        self.ledger.note(
            outcome.nodes,
            distances=step.distances if step and distances is None else distances,
            predictable=distances is not None,
            trimmed=trimmed,
            f=f,
            rejected=[(node, why.reason) for node, why in outcome.rejected],
            missing=[node for node, _ in outcome.missing],
        )
        record = report(round_, outcome, metrics)
        if step:
            record["nodes-trimmed"] = trimmed
            record["nodes-suspected"] = self.ledger.suspects()
        return record
