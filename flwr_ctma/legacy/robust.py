"""RobustStrategy for strategies of `flwr.server.strategy`."""

from collections.abc import Collection
from logging import WARNING
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    log,
)
from flwr.server import ClientManager
from flwr.server.strategy import Strategy
from flwr.serverapp import strategy as flower

from flwr_ctma import strategy as ours
from flwr_ctma.aggregators import Aggregator
from flwr_ctma.compat import ClientProxy
from flwr_ctma.errors import parameter_error
from flwr_ctma.legacy.bridge import Bridge
from flwr_ctma.legacy.records import parameters_of, record_of, scalars
from flwr_ctma.strategy.compatibility import check_compatible_kind
from flwr_ctma.tracking.detectors import Detector, Exclusion
from flwr_ctma.tracking.ledger import Ledger

__all__ = ["RobustStrategy"]

# Deprecated strategies that have another name in the Message API.
_NOW_CALLED = {
    "DPFedAvgFixed": "DifferentialPrivacyServerSideFixedClipping",
    "DPFedAvgAdaptive": "DifferentialPrivacyServerSideAdaptiveClipping",
    "FedXgbNnAvg": "FedXgbBagging",
}


class RobustStrategy(Strategy):
    """Replace all results by a robust one before a legacy strategy sees them.

    Parameters
    ----------
    strategy : flwr.server.strategy.Strategy
        Any that averages.
    aggregator : Aggregator | str (default: "caf")
        The rule, or its name.
    num_malicious_nodes : int | float
        How many of the connected nodes may lie, break or fall silent: a count, or a
        share in [0, 0.5).
    weighted_by_key : str | None (default: None)
        "num-examples" to let clients claim their weight; see
        `flwr_ctma.strategy.RobustStrategy`.
    buffer_keys : Collection[str] (default: ())
        Arrays that are not parameters, such as running statistics. Arrays have no
        names in this API: give their positions as text, "3" for the fourth.
    constant_keys : Collection[str] (default: ())
        Arrays that no client trains, such as masks, by their position.
    max_rejections : int | None (default: None)
        Number of rejected results after which a client is not asked again.
    detector, exclusion, memory
        As for `flwr_ctma.strategy.RobustStrategy`.
    node_timeout : float (default: 600.0)
        Seconds to wait until as many clients are connected as the rule needs.

    Raises
    ------
    ValueError
        As `flwr_ctma.strategy.RobustStrategy` does; and in the first round if secure
        aggregation hides what single clients sent.

    Notes
    -----
    `fit_metrics_aggregation_fn` and `evaluate_metrics_aggregation_fn` get the metrics
    of one client: the trimmed means of all. Text does not count.

    A result that Flower's former server cannot decode is a failure before any strategy
    sees it: such a client is missing here, not rejected. The former server waits for
    all clients, as long as `ServerConfig(round_timeout=…)` says. It runs the rounds
    itself, so a run without an aggregated round does not raise an error; each skipped
    round is a warning in the log.

    Examples
    --------
    >>> from flwr.server.strategy import FedAvg
    >>> strategy = RobustStrategy(FedAvg(), num_malicious_nodes=3)
    """

    def __init__(
        self,
        strategy: Strategy,
        aggregator: Aggregator | str = "caf",
        *,
        num_malicious_nodes: int | float,
        weighted_by_key: str | None = None,
        buffer_keys: Collection[str] = (),
        constant_keys: Collection[str] = (),
        max_rejections: int | None = None,
        detector: Detector | None = None,
        exclusion: Exclusion | None = None,
        memory: float = 0.0,
        node_timeout: float = 600.0,
    ) -> None:
        _refuse(strategy)
        self.strategy = strategy
        self._bridge = Bridge(strategy)
        self._robust = _WithoutHooks(
            self._bridge,
            aggregator,
            num_malicious_nodes=num_malicious_nodes,
            weighted_by_key=weighted_by_key,
            buffer_keys=buffer_keys,
            constant_keys=constant_keys,
            max_rejections=max_rejections,
            detector=detector,
            exclusion=exclusion,
            memory=memory,
            node_timeout=node_timeout,
        )

    @property
    def ledger(self) -> Ledger:
        """The history of each node, and how suspicious it is."""
        return self._robust.ledger

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Delegate."""
        parameters = self.strategy.initialize_parameters(client_manager)
        if parameters is None:
            log(
                WARNING,
                "One client will be asked for the initial model, and it may be a "
                "malicious one: give the strategy `initial_parameters`.",
            )
        return parameters

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Let the strategy inside sample clients, and open the round."""
        grid = self._bridge.prepare(parameters, client_manager)
        arrays = record_of(parameters)
        asked = self._robust.configure_train(server_round, arrays, ConfigRecord(), grid)
        return cast(list[tuple[ClientProxy, FitIns]], self._bridge.to(asked))

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Aggregate the accepted results, and let the strategy inside take its step."""
        _refuse_sums(results)
        replies = self._bridge.replies(results, failures)
        arrays, report = self._robust.aggregate_train(server_round, replies)
        parameters = None if arrays is None else parameters_of(arrays)
        return parameters, self._bridge.metrics | scalars(report)

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Let the strategy inside sample clients, and open the evaluation."""
        grid = self._bridge.prepare(parameters, client_manager)
        arrays = ArrayRecord()
        asked = self._robust.configure_evaluate(
            server_round, arrays, ConfigRecord(), grid
        )
        return cast(list[tuple[ClientProxy, EvaluateIns]], self._bridge.to(asked))

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Average the accepted losses and metrics by a trimmed mean."""
        replies = self._bridge.replies(results, failures)
        report = self._robust.aggregate_evaluate(server_round, replies)
        return self._bridge.loss, self._bridge.metrics | scalars(report)

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Delegate."""
        return self.strategy.evaluate(server_round, parameters)


class _WithoutHooks(ours.RobustStrategy):
    """A strategy in the loop of the former server, in which each round may fail."""

    def _check_foreign_loop(self) -> None:
        """Do nothing."""


def _refuse(strategy: Strategy) -> None:
    """Raise a ValueError for a strategy that must see the results as they are."""
    part: object = strategy
    if not isinstance(part, Strategy):
        raise parameter_error(
            "strategy",
            "a Strategy of `flwr.server.strategy`",
            part,
            "For the Message API use `flwr_ctma.strategy.RobustStrategy`.",
        )
    while isinstance(part, Strategy):
        for base in type(part).__mro__:
            name = _NOW_CALLED.get(base.__name__, base.__name__)
            namesake = getattr(flower, name, None)
            if base.__module__.startswith("flwr.") and isinstance(namesake, type):
                check_compatible_kind(namesake, type(part).__name__)
        part = getattr(part, "strategy", None)


def _refuse_sums(results: list[tuple[ClientProxy, FitRes]]) -> None:
    """Raise a ValueError if all results hold the very same parameters.

    `SecAggPlusWorkflow` writes the average into every result, so that all clients
    would seem to agree.
    """
    if len({id(result.parameters) for _, result in results}) == 1 < len(results):
        raise parameter_error(
            "results",
            "the results of single clients",
            "one average in place of all",
            "Secure aggregation hides what a robust rule compares: use one of the two.",
        )
