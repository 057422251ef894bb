"""Training that waits for nobody, and cannot be flooded."""

import math
import time
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.aggregators import Aggregator
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.anytime import AnyTimeSGD
from flwr_ctma.strategy.asynchronous.contributions import Contributions
from flwr_ctma.strategy.asynchronous.exchange import Exchange, clock
from flwr_ctma.strategy.asynchronous.pending import PendingMessages
from flwr_ctma.strategy.asynchronous.rounds import rounds
from flwr_ctma.strategy.asynchronous.statistics import RoundStatistics
from flwr_ctma.strategy.asynchronous.weighting import ClientWeighting, Counts
from flwr_ctma.strategy.compatibility import resolve_aggregator
from flwr_ctma.strategy.wrappers.base import Evaluate, HookedStrategy
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["AsyncRobustStrategy"]


class AsyncRobustStrategy(HookedStrategy):
    """Take a step at every arrival, along a robust average of all latest updates.

    The server keeps the latest update u_j of every client and the number s_j of updates
    that it has counted of it. When client i delivers, s_i and u_i change, and

        x ← step(x, x + A_ω({u_j}, {s_j}))

    with the rule's weighted form A_ω. The new model goes to client i at once; no client
    has more than one message on its way.

    Parameters
    ----------
    step : AnyTimeSGD
        What the server does with the average: `AnyTimeSGD(0.1)` for the momenta of
        asynchronous μ²-SGD, `AnyTimeSGD(0.1, "fixed(gamma=1)")` for SGD and momentum,
        and with a rate of about 1/n for the updates of ordinary FedAvg clients.
    aggregator : Aggregator | str (default: "ctma(gm)")
        A rule with a weighted form: ctma, gm, cwmed, cwtm.
    num_malicious_nodes : int | float
        f, of all the nodes. Or λ in [0, 1/2), the share of all updates that malicious
        nodes deliver, however many they are: it is taken on trust, as in the paper, and
        a flood is not held back.
    max_share : float | None (default: None)
        The λ that any f clients are held to, of the weight and of the steps that they
        cause. Half-way between f/n and 1/2 if None.
    weighing : Weighing (default: Counts())
        Counts as in the paper, `Staleness()` for FedAvg clients, or `EqualWeights()`.
    arrivals_per_round : int | None (default: None)
        After how many arrivals the model is evaluated; the number of nodes if None.
    max_seconds : float (default: infinity)
        After which the run ends, with the round that it is in.
    min_available_nodes : int (default: 2)
        Nodes to wait for before the start.

    Raises
    ------
    ValueError
        If step is no AnyTimeSGD, the rule has no weighted form, or a number is out of
        range.

    Notes
    -----
    Weights are cut so that any f clients hold at most λ of them, see
    `flwr_ctma.strategy.asynchronous.weighting.capped`. An update of a client whose count is above that cut
    replaces its last, but is not counted and makes the server take no step. So f
    clients cause λ of the steps and f more at most, whatever the pattern of arrivals: a
    flood neither outvotes the others nor makes the server run on along what they sent
    long ago. Until so many nodes have delivered that this can be kept, no step is
    taken.

    Nodes that come later get work at the next tick; nodes that are gone keep no weight
    until they are back. A reply that is rejected costs its sender the rest of the
    round; it counts as no update.

    References
    ----------
    Dahan and Levy, "Weight for Robustness: A Comprehensive Approach towards Optimal
    Fault-Tolerant Asynchronous ML", NeurIPS 2024, Algorithm 2 (arXiv 2501.09621). The
    cap is not theirs: they assume that λ < 1/2 of the updates are Byzantine.

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
        weighing: ClientWeighting = Counts(),  # noqa: B008, a frozen value
        arrivals_per_round: int | None = None,
        max_seconds: float = float("inf"),
        min_available_nodes: int = 2,
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
        self.contributions = Contributions(num_malicious_nodes, max_share, weighing)
        if arrivals_per_round is not None and arrivals_per_round < 1:
            raise parameter_error(
                "arrivals_per_round", "at least 1", arrivals_per_round
            )
        self.step = step
        self.aggregator = resolve_aggregator(aggregator, weighted=True)
        self.num_malicious_nodes = num_malicious_nodes
        self.arrivals_per_round = arrivals_per_round
        self.max_seconds = max_seconds
        f = num_malicious_nodes if isinstance(num_malicious_nodes, int) else 0
        self.min_available_nodes = max(min_available_nodes, 2 * f + 1)
        self.ledger = Ledger()
        self._in_flight = PendingMessages()
        self._timeout = 3600.0
        self._began = math.nan
        self._elapsed = 0.0
        self._tally = RoundStatistics()

    def summary(self) -> None:
        """Log the settings, then those of the step."""
        held = self.contributions
        log(INFO, "\t├──> Asynchronous robust aggregation:")
        log(INFO, "\t│\t├── Aggregator: %s", self.aggregator)
        log(INFO, "\t│\t├── Malicious nodes: %s", self.num_malicious_nodes)
        log(INFO, "\t│\t├── Largest share of the weight: %s", held.max_share or "auto")
        log(INFO, "\t│\t└── Weighing: %s", held.weighing)
        self.step.summary()

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

        A round is a number of arrivals, and its end is when the model is evaluated on
        the server. Clients find in "server-round" how many messages they were sent.

        Parameters
        ----------
        timeout : float (default: 3600)
            Seconds after which a round ends, however few arrivals it had.

        Raises
        ------
        ValueError
            For an `evaluate_config`: nodes are busy training, and evaluate nothing.
        """
        if evaluate_config is not None:
            raise parameter_error(
                "evaluate_config",
                "None",
                "given",
                "Nodes only train here: evaluate on the server with `evaluate_fn`.",
            )
        self._timeout = timeout
        return rounds(
            strategy,
            grid,
            initial_arrays,
            num_rounds,
            ConfigRecord() if train_config is None else train_config,
            evaluate_fn,
            lambda: self._elapsed >= self.max_seconds,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Take the arrivals of a round: nothing is left for Flower's loop to send."""
        if math.isnan(self._began):
            self._wait_for_nodes(grid)
            if self.contributions.clients:  # resumed, where nodes may be others
                here = {*grid.get_node_ids()} | self._in_flight.nodes
                self.contributions.forget_all_but(here)
            self._began = clock(grid) - self._elapsed
        exchange = Exchange(
            grid=grid,
            config=config,
            step=self.step,
            rule=self.aggregator,
            contributions=self.contributions,
            pending=self._in_flight,
            arrays=arrays,
        )
        end = min(clock(grid) + self._timeout, self._began + self.max_seconds)
        exchange.run(self.arrivals_per_round, end)
        self._arrays, self._tally = exchange.arrays, exchange.tally
        self._elapsed = clock(grid) - self._began
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Give the model that the round led to, and sum the round up."""
        if self._tally.steps:
            delivered = sorted(set(self._tally.accepted))
            self._tally.trimmed = self.contributions.trimmed(delivered)
        elif self._tally.accepted:
            why = self.contributions.hindrance()
            log(WARNING, "No step in round %d: %s.", server_round, why)
        self._tally.enter(self.ledger)
        clients = self.contributions.clients.values()
        claims = [c.metrics for c in clients if c.metrics is not None]
        report = self._tally.report(claims, self.num_malicious_nodes)
        report["largest-share"] = self.contributions.share
        report["seconds"] = self._elapsed
        return self._arrays, report

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask nobody: nodes are busy training."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nobody was asked."""
        return None

    def end_run(self, result: Result) -> Result:
        """Return the result; raise an error if no step was taken in the whole run."""
        if not self.contributions.steps and not math.isnan(self._began):
            raise RuntimeError(
                f"No step was taken in the whole run: {self.contributions.hindrance()}."
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs.

        Work that is on its way is among it on a grid that can be saved as well, such as
        `ArrivalGrid`. On Flower's own grids it is lost in a crash: nodes are idle then,
        and are sent the model that was saved. Nodes are known by their ids; what was
        known of those that are not there when the run is resumed is dropped.
        """
        return {
            "contributions": self.contributions.state_dict(),
            "in-flight": self._in_flight.state_dict(),
            "step": self.step.state_dict(),
            "ledger": self.ledger.to_rows(),
            "elapsed": self._elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.contributions.load_state_dict(state["contributions"])
        self._in_flight.load_state_dict(state["in-flight"])
        self.step.load_state_dict(state["step"])
        self.ledger = Ledger.from_rows(state["ledger"])
        self._elapsed, self._began = state["elapsed"], math.nan

    def _wait_for_nodes(self, grid: Grid) -> None:
        while len(nodes := set(grid.get_node_ids())) < self.min_available_nodes:
            log(
                INFO,
                "Waiting for nodes to connect: %d of %d.",
                *(len(nodes), self.min_available_nodes),
            )
            time.sleep(1)
