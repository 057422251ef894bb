"""Strategies and rules that cannot do their work here, and what to use instead."""

import numpy as np
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from flwr_ctma.aggregators import Aggregator, FLTrust, MoNNA, parse_aggregator
from flwr_ctma.aggregators.base import parts
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.wrappers.base import inside

__all__ = ["check_compatible", "check_compatible_kind", "resolve_aggregator"]

_NOISE = "its noise is meant for the mean of clipped replies, which this is not"
_TREES = "trees are joined, not averaged"

_REASONS: tuple[tuple[type[Strategy], str, str], ...] = (
    *(
        (kind, _NOISE, "Let clients add noise of their own, as local DP's mod does.")
        for kind in (
            flower.DifferentialPrivacyClientSideFixedClipping,
            flower.DifferentialPrivacyServerSideFixedClipping,
            flower.DifferentialPrivacyClientSideAdaptiveClipping,
            flower.DifferentialPrivacyServerSideAdaptiveClipping,
        )
    ),
    (
        flower.QFedAvg,
        "it weights each reply by the loss that the client reports",
        "Use FedAvg: a loss that is only claimed must not move the model.",
    ),
    *(
        (kind, _TREES, "Robust aggregation has no meaning here; use it as it is.")
        for kind in (flower.FedXgbBagging, flower.FedXgbCyclic)
    ),
    *(
        (
            kind,
            "it is a robust rule itself, and needs all the replies",
            f'Use FedAvg inside, and aggregator="{rule}".',
        )
        for kind, rule in (
            (flower.Bulyan, "bulyan"),
            (flower.Krum, "krum"),  # before MultiKrum: it is one
            (flower.MultiKrum, "multikrum"),
            (flower.FedMedian, "cwmed"),
            (flower.FedTrimmedAvg, "cwtm"),
        )
    ),
)


def check_compatible(strategy: Strategy) -> None:
    """Raise a ValueError for a strategy that must see single replies."""
    if not isinstance(strategy, Strategy):
        raise parameter_error(
            "strategy",
            "a Strategy of Flower's Message API",
            strategy,
            "For `flwr.server.strategy` use `flwr_ctma.legacy.RobustStrategy`.",
        )
    for part in inside(strategy):
        if getattr(part, "needs_all_replies", False):
            raise parameter_error(
                "strategy",
                "one that averages",
                type(part).__name__,
                "It works on all the replies: put it outside.",
            )
        check_compatible_kind(type(part), type(part).__name__)


def check_compatible_kind(kind: type, name: str) -> None:
    """Raise a ValueError for one of Flower's strategies that cannot be wrapped."""
    for refused, reason, remedy in _REASONS:
        if issubclass(kind, refused):
            raise parameter_error(
                "strategy",
                f"one that averages; {refused.__name__} cannot be wrapped: {reason}",
                name,
                remedy,
            )


def resolve_aggregator(aggregator: Aggregator | str, weighted: bool) -> Aggregator:
    """Give the rule that was named; raise a ValueError if it cannot work here."""
    rule = parse_aggregator(aggregator) if isinstance(aggregator, str) else aggregator
    if not isinstance(rule, Aggregator):
        raise parameter_error(
            "aggregator", 'a rule or its name, such as "ctma(gm)"', aggregator
        )
    if any(isinstance(part, FLTrust | MoNNA) for part in parts(rule)):
        raise parameter_error(
            "aggregator",
            "a rule that needs no row it can trust",
            str(rule),
            "All rows are clients' replies here: use ctma(gm), say.",
        )
    if weighted:  # a rule that takes no weights says so now, not in the first round
        rule(np.eye(16), f=1, weights=np.ones(16))
    return rule
