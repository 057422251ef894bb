"""Strategies and rules that cannot work here, with the reason and the remedy."""

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from flwr_ctma.aggregators import (
    Aggregator,
    CenteredClipping,
    FLTrust,
    MoNNA,
    Zeno,
    parse_aggregator,
)
from flwr_ctma.aggregators.base import iter_rules
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.wrappers.run import inside

__all__ = [
    "check_compatible",
    "check_compatible_kind",
    "resolve_aggregator",
    "trusts_a_row",
]

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
            "it is a robust rule itself and needs all replies",
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
        remedy = "For `flwr.server.strategy` use `flwr_ctma.legacy.RobustStrategy`."
        if isinstance(strategy, type) and issubclass(strategy, Strategy):
            remedy = f"Make one: `{strategy.__name__}()`."
        raise parameter_error(
            "strategy", "a Strategy of Flower's Message API", strategy, remedy
        )
    for part in inside(strategy):
        if getattr(part, "needs_all_replies", False):
            raise parameter_error(
                "strategy",
                "a strategy that averages",
                type(part).__name__,
                f"{type(part).__name__} works on all replies: put it outside.",
            )
        check_compatible_kind(type(part), type(part).__name__)


def check_compatible_kind(kind: type, name: str) -> None:
    """Raise a ValueError for one of Flower's strategies that cannot be wrapped."""
    for refused, reason, remedy in _REASONS:
        if issubclass(kind, refused):
            raise parameter_error(
                "strategy",
                f"a strategy that averages; {refused.__name__} is none: {reason}",
                name,
                remedy,
            )


def trusts_a_row(rule: Aggregator) -> bool:
    """Return whether a rule needs a row that no malicious client can have sent."""
    return any(isinstance(part, FLTrust | MoNNA | Zeno) for part in iter_rules(rule))


def resolve_aggregator(
    aggregator: Aggregator | str, weighted: bool, trusted_row: bool = False
) -> Aggregator:
    """Return the rule; raise a ValueError if it cannot work here.

    Parameters
    ----------
    aggregator : Aggregator | str
    weighted : bool
        Whether the rule is given weights.
    trusted_row : bool (default: False)
        Whether the server has an update of its own.
    """
    rule = parse_aggregator(aggregator) if isinstance(aggregator, str) else aggregator
    if not isinstance(rule, Aggregator):
        raise parameter_error(
            "aggregator", 'a rule or its name, such as "nnm(cwmed)"', aggregator
        )
    if trusts_a_row(rule) and not trusted_row:
        raise parameter_error(
            "aggregator",
            "a rule without a trusted row",
            str(rule),
            "All rows are replies of clients here: use nnm(cwmed), or give "
            "`RobustStrategy` a `server_update`.",
        )
    if trusted_row and not any(part.needs_reference for part in iter_rules(rule)):
        raise parameter_error(
            "aggregator",
            "a rule that trusts the server's row, beside `server_update`",
            str(rule),
            "Use fltrust, monna, or zeno over a rule.",
        )
    if trusted_row and any(isinstance(p, CenteredClipping) for p in iter_rules(rule)):
        raise parameter_error(
            "aggregator",
            "a rule without cclip, beside `server_update`",
            str(rule),
            "cclip starts from the update before, not from the server's own.",
        )
    if weighted:  # a rule that takes no weights fails here, not in the first round
        try:
            rule.check(n=max(rule.min_rows(1), 16), f=1, weighted=True)
        except ValueError as error:
            raise parameter_error(
                "aggregator",
                "a rule of weighted rows, for `weighted_by_key` or asynchronous "
                "training",
                str(rule),
                "Use ctma, gm, cwmed, cwtm, nnm, caf, cclip or mean.",
            ) from error
    return rule
