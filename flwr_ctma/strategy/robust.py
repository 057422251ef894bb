"""Robust aggregation for any Flower strategy that averages."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from flwr_ctma.aggregators import Aggregator, Budget
from flwr_ctma.aggregators.base import is_by_layer, iter_rules, needs_products
from flwr_ctma.compat import log
from flwr_ctma.engine.actors import Unavailable
from flwr_ctma.engine.ray import RayBackend
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import records_of
from flwr_ctma.messages.bounded_grid import bound_replies
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.messages.schema import (
    BUFFER_KEYS,
    Rejection,
    Reply,
    ReplySchema,
    quote,
    read_metrics,
)
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.backends import Backend, parse_backend
from flwr_ctma.strategy.compatibility import check_compatible, resolve_aggregator
from flwr_ctma.strategy.grace_period import GracePeriod, GracePeriodGrid
from flwr_ctma.strategy.round.aggregate import RobustAggregate, aggregate_replies
from flwr_ctma.strategy.round.inner import (
    InnerReplies,
    only_averages,
    overrides,
    without_rounding,
)
from flwr_ctma.strategy.round.memory import NodeMemory, check_memory
from flwr_ctma.strategy.round.progress import Progress, check_same_app
from flwr_ctma.strategy.round.replies import InspectedReplies, Round
from flwr_ctma.strategy.round.report import log_misreported, log_replies, report
from flwr_ctma.strategy.round.selection import NodeSelection
from flwr_ctma.strategy.round.server_update import ServerUpdate, trusted_update
from flwr_ctma.strategy.round.tolerance import Tolerance
from flwr_ctma.strategy.round.weights import claimed_budget, weight_of
from flwr_ctma.strategy.wrappers.base import StrategyWrapper, setting
from flwr_ctma.tracking.center import PreviousUpdate
from flwr_ctma.tracking.detectors import (
    Detector,
    Exclusion,
    Observation,
    check_detector,
    make_exclusion,
)
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["RobustStrategy"]


class RobustStrategy(StrategyWrapper):
    """Replace all client replies by a robust aggregate before the strategy sees them.

    Every reply is inspected on its own; a bad one is rejected with its reason. A rule
    aggregates the accepted ones, minus the model that was sent. The strategy
    inside gets the result as the reply of the round: FedAvg passes it on, FedAdam,
    FedYogi, FedAdagrad and FedAvgM apply their server optimiser to it.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of Flower's Message API that averages.
    aggregator : Aggregator | str (default: "caf")
        The rule, or its name.
    num_malicious_nodes : int | float
        How many of the connected nodes may lie, break or fall silent: a count, or a
        share in [0, 0.5). If nodes are sampled, f is the largest number that samples
        hold with 99 % confidence over all rounds.
    weighted_by_key : str | None (default: None)
        Metric with which clients claim their weight, such as "num-examples". Claims are
        cut to the (f + 1)-th largest. In a round in which the f largest are half of the
        sum, all clients count the same; if None, they always do.
    buffer_keys : Collection[str] (default: BUFFER_KEYS)
        Arrays that are not parameters, by the last part of their key: running
        statistics. They are aggregated on their own, by a trimmed mean, do not count in
        distances, and skip the server optimiser; so do integers and booleans.
    constant_keys : Collection[str] (default: ())
        Arrays that no client trains, such as masks of −inf, by the last part of their
        key. They stay as they were sent.
    max_rejections : int | None (default: None)
        Short for `exclusion=Exclusion(max_rejections=…)`: the number of proofs and
        faults after which a node is not asked again, although the strategy inside
        samples it. Trimmed and missing replies do not count.
    detector : Detector | None (default: None)
        Judges the nodes after each round; the ledger if None.
    exclusion : Exclusion | None (default: None)
        Which nodes are not asked: none if None. At most f nodes of a round are
        excluded, those with the most proofs and faults first. A node that is excluded
        for proofs or faults counts as a rejected reply. A node that is excluded by
        verdict counts as no reply, and is asked where the round needs its reply.
    memory : float (default: 0.0)
        β in [0, 1). If above 0, the rule weighs averages of each node's updates over
        the rounds, m ← β m + (1 − β) u, beside the updates of the round, scaled down to
        the noise of the averages. Its weights are applied to the updates of the round,
        clipped to twice their median norm. See `NodeMemory`. It takes a row
        of the model's size for every connected node. The rule must weigh whole clients,
        as caf and nnm(gm) do; the backend may not be "ray".
    server_update : callable | None (default: None)
        `server_update(server_round, arrays)` trains the model on examples of the
        server's own, as a client does, and returns the trained `ArrayRecord`. Its
        difference to the model is the trusted row that `fltrust`, `monna` and `zeno`
        need. The function is called in each round that has enough replies. For the same
        bits after a resume, let it depend on its arguments alone.
    grace_period : GracePeriod | None (default: GracePeriod())
        How long `start` waits for the last f replies once the others are in; None: as
        long as Flower does. Inside a strategy of another package, start that with a
        `GracePeriodGrid`; that run ends with an error if its first round fails.
    reply_limit : ReplyLimit (default: ReplyLimit())
        The memory that a reply may take, in a deployment.
    backend : Backend | str (default: "local")
        The place of the rows of a round: "local", in this process, where inner products
        are computed while replies arrive; "ray", on the workers of a Ray cluster (a
        round in which those fail is skipped). In both the bits of the result do not
        depend on the order of arrival.
    node_timeout : float (default: 600.0)
        Seconds to wait until as many nodes are connected as the rule needs.

    Attributes
    ----------
    ledger : Ledger
        The history of each node, and how suspicious it is.
    detector : Detector
        The judge of the nodes.
    exclusion : Exclusion
        The nodes that are not asked.
    f : int
        The largest number of malicious nodes among those last asked to train.

    Raises
    ------
    ValueError
        If the strategy must see the replies as they are, the rule needs a trusted row
        and there is no `server_update`, or num_malicious_nodes is neither a count nor a
        share. In `start`: if `server_update` returns another form of the model.
    RuntimeError
        In `start`: if too few nodes connect, `server_update` raises an exception, or no
        round of the run was aggregated.

    Notes
    -----
    With f malicious nodes among those asked, a round needs 2f + 1 accepted replies.
    Each rejected reply that proves its sender malicious lowers that by two. Two faults
    of a round, or half of them if these are more, lower nothing; each other fault
    lowers it by two. If there are more than f proofs and faults, none lowers it.
    `flwr_ctma.tracking.evidence` has the reasons of each kind. A round with fewer
    replies is skipped, and the model stays. To bear f silent nodes as well as f liars,
    ask 3f + 1.

    Metrics are averaged by a trimmed mean, in which all clients count the same. The
    claims of a client about itself move no model, unless `weighted_by_key` lets them.

    A strategy of one's own that overrides `aggregate_train` or `aggregate_evaluate`
    sees a reply for each accepted one, and the errors: all have the same robust arrays,
    so that their average is the aggregate; each has the client's metrics, clipped to a
    range that honest values span, and its other records, which nothing protects. A
    metrics function of one's own sees the same.

    All clients must be sent the same model and must reply with all of its arrays.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = RobustStrategy(FedAvg(), "ctma(cwmed)", num_malicious_nodes=3)
    >>> print(strategy.aggregator)
    ctma(cwmed)
    """

    needs_all_replies = True
    repeatable = False
    evidence = frozenset({"ledger", "detector", "exclusion", "progress"})
    # FedAvg has a setting of the same name: this one is the wrapper's own.
    weighted_by_key: str | None = None

    def __init__(
        self,
        strategy: Strategy,
        aggregator: Aggregator | str = "caf",
        *,
        num_malicious_nodes: int | float,
        weighted_by_key: str | None = None,
        buffer_keys: Collection[str] = BUFFER_KEYS,
        constant_keys: Collection[str] = (),
        max_rejections: int | None = None,
        detector: Detector | None = None,
        exclusion: Exclusion | None = None,
        memory: float = 0.0,
        server_update: ServerUpdate | None = None,
        grace_period: GracePeriod | None = GracePeriod(),  # noqa: B008, a frozen value
        reply_limit: ReplyLimit = ReplyLimit(),  # noqa: B008, a frozen value
        backend: Backend | str = "local",
        node_timeout: float = 600.0,
    ) -> None:
        check_compatible(strategy)
        super().__init__(strategy)
        weighted = weighted_by_key is not None
        tolerance = Tolerance(num_malicious_nodes)
        if server_update is not None and not callable(server_update):
            raise parameter_error(
                "server_update",
                "a function of a round and an ArrayRecord, or None",
                server_update,
            )
        self.server_update = server_update
        self.aggregator = resolve_aggregator(
            aggregator, weighted, trusted_row=server_update is not None
        )
        self.num_malicious_nodes = tolerance.num_malicious_nodes
        self.weighted_by_key = weighted_by_key
        if weighted and not isinstance(weighted_by_key, str):
            raise parameter_error(
                "weighted_by_key", "the name of a metric, or None", weighted_by_key
            )
        self.buffer_keys = _as_tuple("buffer_keys", buffer_keys)
        self.constant_keys = _as_tuple("constant_keys", constant_keys)
        if not isinstance(grace_period, GracePeriod | None):
            raise parameter_error(
                "grace_period", "a `GracePeriod`, or None", grace_period
            )
        self.grace_period = grace_period
        if not isinstance(reply_limit, ReplyLimit):
            raise parameter_error("reply_limit", "a `ReplyLimit`", reply_limit)
        self.reply_limit = reply_limit
        self.backend = parse_backend(backend)
        self.node_timeout = node_timeout
        self.memory = memory
        self._memory = _node_memory(memory, self.aggregator, self.backend)
        self.ledger = Ledger()
        self.detector: Detector = check_detector(detector) or self.ledger
        self.exclusion = make_exclusion(exclusion, max_rejections)
        self.max_rejections = self.exclusion.max_rejections  # for audit trails
        self._center = PreviousUpdate()
        self.f = 0
        self._nodes = NodeSelection(
            self.aggregator, weighted, tolerance, self.exclusion, node_timeout
        )
        self._starts_from_previous = server_update is None and any(
            part.needs_reference for part in iter_rules(self.aggregator)
        )
        self._arrays_key: str = setting(strategy, "arrayrecord_key", "arrays")
        self._weight_key: str = setting(strategy, "weighted_by_key", "num-examples")
        self._training: Round | None = None
        self._evaluation: Round | None = None
        self._previous: list[NDArray[Any]] | None = None
        self._progress = Progress()

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
        grace = self.grace_period or "until the timeout"
        if self.memory:
            log(INFO, "\t│\t├── Memory: %g", self.memory)
        log(INFO, "\t│\t└── Grace period: %s", grace)
        self.strategy.summary()

    def prepare_grid(self, grid: Grid, num_rounds: int) -> Grid:
        """Return a grid that waits as `grace_period` says, and bounds each reply."""
        self._nodes.expect(num_rounds)
        # Of a run before; a checkpoint is read later.
        self._progress, self._previous = Progress(), None
        self._center = PreviousUpdate()
        self._memory = _node_memory(self.memory, self.aggregator, self.backend)
        if self.grace_period and not isinstance(grid, InProcessGrid | GracePeriodGrid):
            return GracePeriodGrid(
                grid,
                self.num_malicious_nodes,
                self.grace_period,
                self.receive,
                reply_limit=self.reply_limit,
            )
        return bound_replies(grid, self.reply_limit)

    def receive(self, replies: Sequence[Message]) -> None:
        """Inspect replies while others are still missing; `start` arranges for it."""
        if self._training:
            self._training.receive(replies)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside sample nodes, and open the round."""
        if self._run is None and server_round == 1:
            self._progress = Progress()  # of a run before, which called no hooks
        self._check_foreign_loop()
        self._nodes.wait(grid, is_needed=not self._progress.aggregated)
        messages = self.strategy.configure_train(server_round, arrays, config, grid)
        asked, self.f, violators, suspects = self._nodes.select("train", messages, grid)
        if self._memory:
            self._memory.forget_all_but(grid.get_node_ids())
        if not asked:
            self._training = None
            return asked
        self._progress.asked += 1
        schema = ReplySchema(
            *(self._sent(asked, arrays), self.buffer_keys, self.constant_keys),
            is_by_layer(self.aggregator),
        )
        self._check_resumed(schema)
        self._training = Round(
            phase="train",
            asked=asked,
            f=self.f,
            violators=violators,
            suspects=suspects,
            arrays=arrays,
            schema=schema,
            read=self._reader(schema),
            rows=self.backend.open_round(
                schema, not self.memory and needs_products(self.aggregator)
            ),
            # Once: training on the server takes its time, and may draw at random.
            reference=cache(lambda: self._reference(server_round, schema)),
        )
        return asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the accepted replies, and let the strategy inside take its step."""
        round_, self._training = self._training, None
        if round_ is None:
            return None, None
        found = round_.inspect(replies)
        f = round_.effective_f(found)
        log_replies(round_, found)
        result = None if f is None else self._aggregate(round_, found, f)
        self._progress.note(found)
        if f is None or result is None:
            check_same_app(self._progress, round_, found)
            return round_.arrays, self._record(round_, found)
        distances = self._distances(round_, found, result)
        inner = self._inner(round_, found, f, {self._arrays_key: result.arrays})
        arrays, metrics = self._inner_step(server_round, round_, inner, result)
        self._progress.close(type(self.strategy).__name__, arrays is not None)
        return arrays, self._record(round_, found, inner, metrics, result, distances)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside sample nodes, and open the evaluation."""
        self._check_foreign_loop()
        messages = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        asked, f, violators, suspects = self._nodes.select("evaluate", messages, grid)
        self._evaluation = (
            Round(
                *("evaluate", asked, f, read_metrics),
                violators=violators,
                suspects=suspects,
            )
            if asked
            else None
        )
        return asked

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics of the accepted replies by a trimmed mean."""
        round_, self._evaluation = self._evaluation, None
        if round_ is None:
            return None
        found = round_.inspect(replies)
        f = round_.effective_f(found)
        log_replies(round_, found)
        if f is None:
            return self._record(round_, found)
        inner = self._inner(round_, found, f)
        if overrides(self.strategy, "aggregate_evaluate"):
            metrics = self.strategy.aggregate_evaluate(server_round, inner.each())
        else:
            with inner.given_to_metrics_function(
                self.strategy, "evaluate_metrics_aggr_fn"
            ):
                metrics = self.strategy.aggregate_evaluate(server_round, inner.one())
        return self._record(round_, found, inner, metrics)

    def end_run(self, result: Result) -> Result:
        """Return the result; raise an error if no round of the run was aggregated."""
        self._progress.check()
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the ledger, the counts, and what is known of earlier updates."""
        judge = None if self.detector is self.ledger else self.detector.state_dict()
        return {
            "ledger": self.ledger.to_rows(),
            "detector": judge,
            "exclusion": self.exclusion.state_dict(),
            "center": self._center.state_dict(),
            "previous": self._previous,
            "progress": self._progress.state_dict(),
            "memory": self._memory.state_dict() if self._memory else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.ledger.load_state_dict({"rows": state["ledger"]})
        if state["detector"] is not None and self.detector is not self.ledger:
            self.detector.load_state_dict(state["detector"])
        self.exclusion.load_state_dict(state["exclusion"])
        self._center.load_state_dict(state["center"])
        # A rule that starts elsewhere has no use for it, nor for its layers.
        self._previous = state["previous"] if self._starts_from_previous else None
        self._progress = Progress.from_state(state["progress"])
        if self._memory and state["memory"] is not None:
            self._memory.load_state_dict(state["memory"])

    def reference(self) -> dict[str, NDArray[Any]] | None:
        """Return the row that the rule trusts or starts from in the round, by key."""
        round_ = self._training
        row = round_.reference() if round_ else None
        if row is None or round_ is None or round_.schema is None:
            return None
        schema = round_.schema
        return schema.by_key(dict(zip(schema.measured, row, strict=True)))

    def budget(self, metrics: Sequence[MetricRecord], f: int) -> Budget:
        """Return the budget of Byzantine rows, or of weight if clients claim it."""
        return claimed_budget(metrics, f, self.weighted_by_key)

    def _check_foreign_loop(self) -> None:
        """Raise a RuntimeError if a loop without hooks has aggregated no round yet.

        Such a loop, as that of Flower's own wrappers, does not say when the run ends.
        """
        if self._run is None and self._progress.asked > self._progress.aggregated == 0:
            raise RuntimeError(
                f"{self._progress.sentence} A strategy outside of RobustStrategy runs "
                "the rounds and may withhold replies. Put RobustStrategy, or another "
                "wrapper of flwr-ctma, outermost and call its `start`: then a round "
                "may fail."
            )

    def _check_resumed(self, schema: ReplySchema) -> None:
        """Raise a ValueError if rows of the rounds before have other layers."""
        before = [] if self._previous is None else [self._previous]
        for rows in (*before, *(self._memory.rows() if self._memory else ())):
            schema.check_widths([row.size for row in rows], schema.measured)

    def _sent(self, asked: Sequence[Message], arrays: ArrayRecord) -> ArrayRecord:
        """Return the model that all messages hold."""
        key = self._arrays_key
        models = [records_of(m.content, ArrayRecord).get(key, arrays) for m in asked]
        if any(m is not models[0] and m != models[0] for m in models):
            raise parameter_error(
                "strategy",
                "a strategy that sends the same model to all clients",
                type(self.strategy).__name__,
                "Robust rules compare replies to one model: send what differs in a "
                "ConfigRecord, or let clients select their part.",
            )
        return models[0]

    def _reader(self, schema: ReplySchema) -> Any:
        """Return the inspection of replies to training."""
        key = self.weighted_by_key

        def read(content: RecordDict) -> Reply | Rejection:
            found = schema.read(content)
            if key is None or isinstance(found, Rejection):
                return found
            if math.isnan(weight_of(found.metrics, key)):
                detail = f"{quote(key)} is not a finite number above zero"
                return Rejection("weight", detail)
            return found

        return read

    def _reference(
        self, server_round: int, schema: ReplySchema
    ) -> list[NDArray[Any]] | None:
        """Return the server's own update if it trains, else the update before."""
        if self.server_update:
            return trusted_update(self.server_update, server_round, schema)
        return self._previous

    def _aggregate(
        self, round_: Round, found: InspectedReplies, f: int
    ) -> RobustAggregate | None:
        """Return the robust aggregate, or None if the rule or the backend fails."""
        if round_.schema is None:
            return None
        reference = round_.reference()
        if self.server_update and reference is None:
            return None
        keys = [one.key for one in found.accepted]
        try:
            return aggregate_replies(
                self.aggregator,
                round_.schema,
                found.replies,
                self.budget([reply.metrics for reply in found.replies], f),
                reference,
                lambda rows: round_.rows.place(rows, keys),
                self._memory,
                found.nodes,
            )
        except (ValueError, Unavailable) as error:
            log(WARNING, "aggregate_train: Skipped. %s", error)
            return None

    def _distances(
        self, round_: Round, found: InspectedReplies, result: RobustAggregate
    ) -> NDArray[Any] | None:
        """Return the distances to the update before, which no reply of now can move."""
        if round_.schema is None:
            return None
        measured = round_.schema.measured
        rows = [[reply.rows[i] for i in measured] for reply in found.replies]
        distances = self._center.distances(rows, round_.schema.origin(measured))
        self._center.keep(result.update)
        return distances

    def _inner(
        self,
        round_: Round,
        found: InspectedReplies,
        f: int,
        arrays: dict[str, ArrayRecord] | None = None,
    ) -> InnerReplies:
        inner = InnerReplies(round_, found, f, self._weight_key, arrays or {})
        log_misreported(inner.misreported)
        return inner

    def _inner_step(
        self,
        server_round: int,
        round_: Round,
        inner: InnerReplies,
        result: RobustAggregate,
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy inside see the result, and take its step."""
        if self._starts_from_previous:
            self._previous = result.update
        else:
            result.update.clear()  # memory for a model, which the strategy inside needs
        if overrides(self.strategy, "aggregate_train"):
            replies = inner.each()
            arrays, metrics = self.strategy.aggregate_train(server_round, replies)
            if arrays is not None:
                arrays = without_rounding(result.arrays, arrays, len(replies))
        else:
            known = only_averages(self.strategy)
            with inner.given_to_metrics_function(
                self.strategy, "train_metrics_aggr_fn"
            ):
                arrays, metrics = self.strategy.aggregate_train(
                    server_round, inner.one(arrays=not known)
                )
            if known and arrays is not None:
                arrays = result.arrays
        if arrays is not None and round_.schema is not None:
            round_.schema.check_same_arrays(arrays, type(self.strategy).__name__)
            arrays = round_.schema.restore_dtypes_and_buffers(result.arrays, arrays)
        return arrays, metrics

    def _record(
        self,
        round_: Round,
        found: InspectedReplies,
        inner: InnerReplies | None = None,
        metrics: MetricRecord | None = None,
        result: RobustAggregate | None = None,
        distances: NDArray[Any] | None = None,
    ) -> MetricRecord:
        """Let the detector judge the round; return its metrics with the counts."""
        trimmed = [found.nodes[i] for i in result.trimmed] if result else []
        seen = Observation(
            found.nodes,
            distances=result.distances if result and distances is None else distances,
            predictable=distances is not None,
            trimmed=trimmed,
            f=inner.f if inner and result else 0,
            rejected=[(node, why.reason) for node, why in found.rejected],
            missing=[node for node, _ in found.missing],
        )
        verdicts = self.ledger.judge(seen)
        if self.detector is not self.ledger:
            verdicts = dict(self.detector.judge(seen))
        self.exclusion.enter(seen, verdicts)
        misreported = inner.misreported if inner else []
        record = report(round_, found, misreported, metrics)
        if result:
            record["nodes-trimmed"] = trimmed
            record["nodes-suspected"] = [
                node for node, held in verdicts.items() if held
            ]
        return record


def _node_memory(beta: float, rule: Aggregator, backend: Backend) -> NodeMemory | None:
    """Return the memory for this β; None for β = 0."""
    check_memory(beta, rule)
    if not beta:
        return None
    if isinstance(backend, RayBackend):
        raise parameter_error(
            "backend",
            '"local" beside `memory`',
            backend,
            "What is remembered of the nodes is held in this process.",
        )
    return NodeMemory(float(beta))


def _as_tuple(name: str, keys: Collection[str]) -> tuple[str, ...]:
    """Return keys as a tuple; raise an error for a text, whose letters are no keys."""
    if isinstance(keys, str) or not isinstance(keys, Collection):
        raise parameter_error(name, "a collection of strings", keys)
    return tuple(keys)
