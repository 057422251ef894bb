"""Asynchronous training that f nodes can neither outvote nor use up."""

import math
import time
from collections.abc import Collection, Iterable, Mapping
from logging import INFO, WARNING
from numbers import Integral
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.aggregators import Aggregator
from flwr_ctma.aggregators.base import is_by_layer
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.bounded_grid import bound_replies
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.strategy.anytime import AnyTimeSGD
from flwr_ctma.strategy.asynchronous.async_round import AsyncRound, clock
from flwr_ctma.strategy.asynchronous.clients import ClientUpdates
from flwr_ctma.strategy.asynchronous.loop import run_rounds
from flwr_ctma.strategy.asynchronous.pending import PendingMessages
from flwr_ctma.strategy.asynchronous.statistics import RoundStatistics
from flwr_ctma.strategy.asynchronous.weighting import (
    ClientWeighting,
    Counts,
    parse_client_weighting,
)
from flwr_ctma.strategy.compatibility import resolve_aggregator
from flwr_ctma.strategy.round.memory import check_memory
from flwr_ctma.strategy.wrappers.base import Evaluate, HookedStrategy
from flwr_ctma.tracking.detectors import (
    Detector,
    Exclusion,
    check_detector,
    make_exclusion,
)
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["AsyncRobustStrategy"]


class AsyncRobustStrategy(HookedStrategy):
    """Take a step at every counted update, along a robust average of the latest ones.

    The server keeps the latest update u_j of every client and the number s_j of its
    updates that were counted. When client i delivers, s_i and u_i change, and

        x ← step(x, x + A_ω({u_j}, {s_j}))

    with the rule's weighted form A_ω. Client i is sent the new model at once; no client
    has more than one unanswered message.

    Parameters
    ----------
    step : AnyTimeSGD
        The step along the average: `AnyTimeSGD(0.1)` for the momenta of asynchronous
        μ²-SGD, `AnyTimeSGD(0.1, "fixed(gamma=1)")` for SGD and momentum, and a rate of
        about 1/n for the updates of ordinary FedAvg clients.
    aggregator : Aggregator | str (default: "ctma(gm)")
        A rule with a weighted form: ctma, gm, cwmed, cwtm.
    num_malicious_nodes : int | float
        f, of all the nodes. Or λ in [0, 1/2), the share of all updates that malicious
        nodes deliver, however many they are: it is taken on trust, as in the paper, and
        no node is held to a cap.
    max_share : float | None (default: None)
        The λ that any f clients are held to, of the weight and of the steps that they
        cause. Half-way between f/n and 1/2 if None.
    client_weighting : ClientWeighting | str (default: Counts())
        Counts as in the paper, `Staleness()` for FedAvg clients, or `EqualWeights()`.
    updates_per_round : int | None (default: None)
        Counted updates after which the model is evaluated; the number of nodes if None.
    max_seconds : float (default: infinity)
        The run ends with the round in which this time is over.
    min_available_nodes : int (default: 2)
        Nodes to wait for before the start.
    reply_limit : ReplyLimit (default: ReplyLimit())
        The memory that a reply may take, in a deployment.
    constant_keys : Collection[str] (default: ())
        Arrays that no client trains, such as masks of −inf, by the last part of their
        key. They stay as they were sent.
    detector : Detector | None (default: None)
        Judges the nodes after each round; the ledger if None.
    exclusion : Exclusion | None (default: None)
        Which nodes get no work, and have no weight: none if None. At most f nodes are
        excluded, and only if more than 2f are left. A node that appeals starts with a
        count of 0.
    memory : float (default: 0.0)
        β in [0, 1). If above 0, the rule sees an average of each client's updates
        beside the latest one, as in `RobustStrategy`. It takes one row more of each
        client. The rule must weigh whole clients, as ctma, gm, caf and nnm(gm) do.

    Raises
    ------
    ValueError
        If a parameter is of another type or out of range, or the rule has no weighted
        form.

    Notes
    -----
    Weights are cut so that any f clients hold at most λ of them, see
    `flwr_ctma.strategy.asynchronous.weighting.capped`. A client whose count is above
    the cap gets no work until the others have delivered so much that the cap allows it.
    So f clients cause λ of the steps and f more at most, whatever the pattern of
    arrivals: a flood neither outvotes the others, nor uses up the rounds, which consist
    of counted updates. Until so many nodes have delivered that this can be kept, no
    step is taken.

    Nodes that connect later get work within a second. Nodes that have left have no
    weight until they are back, and their metrics are not reported. There are never more
    rows than nodes were connected at the same time. A node whose reply is rejected
    gets no work for the rest of the round; the reply counts as no update.

    A node that may register under new ids starts with a new count each time: the cap
    holds f clients only where the SuperLink authenticates nodes.

    References
    ----------
    Dahan and Levy, "Weight for Robustness: A Comprehensive Approach towards Optimal
    Fault-Tolerant Asynchronous ML", NeurIPS 2024, Algorithm 2 (arXiv 2501.09621). The
    cap is an addition: the paper assumes that λ < 1/2 of the updates are Byzantine.

    Examples
    --------
    >>> strategy = AsyncRobustStrategy(AnyTimeSGD(0.1), num_malicious_nodes=2)
    >>> print(strategy.aggregator)
    ctma(gm)
    """

    needs_all_replies = True
    is_asynchronous = True

    def __init__(
        self,
        step: AnyTimeSGD,
        aggregator: Aggregator | str = "ctma(gm)",
        *,
        num_malicious_nodes: int | float,
        max_share: float | None = None,
        client_weighting: ClientWeighting | str = Counts(),  # noqa: B008, frozen
        updates_per_round: int | None = None,
        max_seconds: float = float("inf"),
        min_available_nodes: int = 2,
        reply_limit: ReplyLimit = ReplyLimit(),  # noqa: B008, frozen
        constant_keys: Collection[str] = (),
        detector: Detector | None = None,
        exclusion: Exclusion | None = None,
        memory: float = 0.0,
    ) -> None:
        if not isinstance(step, AnyTimeSGD):
            raise parameter_error(
                "step",
                "AnyTimeSGD",
                step,
                'For FedAvg clients: AnyTimeSGD(1 / n, "fixed(gamma=1)").',
            )
        for name in ("start", "configure_train", "aggregate_train"):
            if getattr(type(step), name) is not getattr(AnyTimeSGD, name):
                raise parameter_error(
                    "step",
                    f"AnyTimeSGD without a `{name}` of its own",
                    type(step).__name__,
                    "Asynchronous training calls `step.step` alone: override that.",
                )
        if isinstance(client_weighting, str):
            client_weighting = parse_client_weighting(client_weighting)
        self.aggregator = resolve_aggregator(aggregator, weighted=True)
        check_memory(memory, self.aggregator)
        self.memory = memory
        self.clients = ClientUpdates(
            num_malicious_nodes, max_share, client_weighting, memory
        )
        if updates_per_round is not None:
            _check_count("updates_per_round", updates_per_round)
        _check_count("min_available_nodes", min_available_nodes)
        if isinstance(max_seconds, bool | str) or not max_seconds > 0:
            raise parameter_error("max_seconds", "a number above 0", max_seconds)
        if not isinstance(reply_limit, ReplyLimit):
            raise parameter_error("reply_limit", "a `ReplyLimit`", reply_limit)
        self.step = step
        self.num_malicious_nodes = self.clients.f
        self.updates_per_round = updates_per_round
        self.max_seconds = max_seconds
        self.reply_limit = reply_limit
        f = self.clients.f if isinstance(self.clients.f, int) else 0
        self.min_available_nodes = max(min_available_nodes, 2 * f + 1)
        self.ledger = Ledger()
        self.detector: Detector = check_detector(detector) or self.ledger
        self.exclusion = make_exclusion(exclusion)
        self.constant_keys = constant_keys
        self._pending = self._no_messages()
        self._timeout = 3600.0
        self._began = math.nan
        self._elapsed = 0.0
        self._statistics = RoundStatistics()

    def _no_messages(self) -> PendingMessages:
        return PendingMessages(self.constant_keys, is_by_layer(self.aggregator))

    def summary(self) -> None:
        """Log the settings, then those of the step."""
        clients = self.clients
        log(INFO, "\t├──> Asynchronous robust aggregation:")
        log(INFO, "\t│\t├── Aggregator: %s", self.aggregator)
        log(INFO, "\t│\t├── Malicious nodes: %s", self.num_malicious_nodes)
        log(
            INFO,
            "\t│\t├── Largest share of the weight: %s",
            clients.max_share or "auto",
        )
        if self.memory:
            log(INFO, "\t│\t├── Memory: %g", self.memory)
        log(INFO, "\t│\t└── Client weighting: %s", clients.client_weighting)
        self.step.summary()

    def prepare_grid(self, grid: Grid, num_rounds: int) -> Grid:
        """Forget the nodes and the time of a run before; a checkpoint is read later."""
        known = self.clients
        self.clients = ClientUpdates(
            known.f, known.max_share, known.client_weighting, known.memory
        )
        self._pending = self._no_messages()
        self._elapsed, self._began = 0.0, math.nan
        return grid

    def run_rounds(
        self,
        strategy: Strategy,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Run the rounds of the outermost strategy; see `Strategy.start`.

        A round is a number of counted updates; at its end the model is evaluated on the
        server. Clients find in "server-round" how many messages they were sent.

        Parameters
        ----------
        timeout : float (default: 3600)
            Seconds after which a round ends, however few updates were counted.

        Raises
        ------
        ValueError
            For an `evaluate_config`: nodes are busy training, and evaluate nothing.
        RuntimeError
            If the run ends without a step.
        """
        if evaluate_config is not None:
            raise parameter_error(
                "evaluate_config",
                "None",
                "given",
                "Nodes only train here: evaluate on the server with `evaluate_fn`.",
            )
        self._timeout = timeout
        grid = bound_replies(grid, self.reply_limit)
        try:
            return run_rounds(
                strategy,
                grid,
                initial_arrays,
                num_rounds,
                ConfigRecord() if train_config is None else train_config,
                evaluate_fn,
                lambda: self._elapsed >= self.max_seconds,
            )
        finally:
            self._pending.abandon(grid)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Run a round; nothing is left for Flower's loop to send."""
        if math.isnan(self._began):
            self._wait_for_nodes(grid)
            if self.clients.clients:  # resumed, perhaps with other nodes
                here = {*grid.get_node_ids()} | self._pending.nodes
                self.clients.forget([n for n in self.clients.clients if n not in here])
            self._began = clock(grid) - self._elapsed
        round_ = AsyncRound(
            grid=grid,
            config=config,
            step=self.step,
            rule=self.aggregator,
            clients=self.clients,
            pending=self._pending,
            arrays=arrays,
            constant_keys=self.constant_keys,
            suspects=self.exclusion.nodes,
        )
        end = min(clock(grid) + self._timeout, self._began + self.max_seconds)
        round_.run(self.updates_per_round, end)
        self._arrays, self._statistics = round_.arrays, round_.statistics
        self._elapsed = clock(grid) - self._began
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Return the model at the end of the round, and the metrics of the round."""
        if self._statistics.steps:
            delivered = sorted(set(self._statistics.accepted))
            self._statistics.trimmed = self.clients.trimmed(delivered)
        else:
            why = self.clients.why_no_step()
            log(WARNING, "No step in round %d: %s.", server_round, why)
        seen = self._statistics.observation()
        verdicts = self.ledger.judge(seen)
        if self.detector is not self.ledger:
            verdicts = dict(self.detector.judge(seen))
        self.exclusion.enter(seen, verdicts)
        claims = self.clients.claims()
        report = self._statistics.report(claims, self.num_malicious_nodes)
        report["largest-share"] = self.clients.share
        report["seconds"] = self._elapsed
        report["nodes-suspected"] = [node for node, held in verdicts.items() if held]
        return self._arrays, report

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return no messages: nodes are busy training."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return None: no node evaluates."""
        return None

    def end_run(self, result: Result) -> Result:
        """Return the result; raise an error if no step was taken in the whole run."""
        if not self.clients.steps and not math.isnan(self._began):
            raise RuntimeError(
                f"The run ended without a step: {self.clients.why_no_step()}."
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs.

        It includes unanswered messages on a grid that is saved as well, such as
        `ArrivalGrid`. On Flower's own grids they are lost in a crash: nodes are idle
        then, and are sent the model that was saved. Nodes are known by their ids; what
        was known of nodes that are not connected when the run is resumed is dropped.
        """
        judge = None if self.detector is self.ledger else self.detector.state_dict()
        return {
            "clients": self.clients.state_dict(),
            "pending": self._pending.state_dict(),
            "step": self.step.state_dict(),
            "ledger": self.ledger.to_rows(),
            "detector": judge,
            "exclusion": self.exclusion.state_dict(),
            "elapsed": self._elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.clients.load_state_dict(state["clients"])
        self._pending.load_state_dict(state["pending"])
        self.step.load_state_dict(state["step"])
        self.ledger.load_state_dict({"rows": state["ledger"]})
        if state["detector"] is not None and self.detector is not self.ledger:
            self.detector.load_state_dict(state["detector"])
        self.exclusion.load_state_dict(state["exclusion"])
        self._elapsed, self._began = state["elapsed"], math.nan

    def _wait_for_nodes(self, grid: Grid) -> None:
        while len(nodes := set(grid.get_node_ids())) < self.min_available_nodes:
            log(
                INFO,
                "Waiting for nodes to connect: %d of %d.",
                *(len(nodes), self.min_available_nodes),
            )
            time.sleep(1)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise parameter_error(name, "a whole number, at least 1", value)
