"""The strategy of the ServerApp: synchronous or asynchronous."""

from typing import Any

from flwr.serverapp.strategy import FedAvg, Strategy

from clients.config import RunConfig
from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import Attack, parse_attack
from flwr_ctma.optim.schedules import Fixed
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    AttackedStrategy,
    RobustStrategy,
)
from flwr_ctma.strategy.asynchronous.weighting import (
    EqualWeights,
    parse_client_weighting,
)

__all__ = ["attack_of_arrivals", "build_strategy"]


def build_strategy(config: RunConfig) -> Strategy:
    """Build the strategy: averaging, inside a robust rule, inside an attack."""
    sampling: dict[str, Any] = {
        "fraction_train": config.fraction_train,
        "fraction_evaluate": config.fraction_evaluate,
        "min_train_nodes": config.num_sampled,
        "min_available_nodes": config.num_nodes,
    }
    strategy: Strategy
    if config.asynchronous:
        return _asynchronous(config)
    if config.steps_on == "clients":
        strategy = FedAvg(**sampling)
    else:
        strategy = _server_step(config, **sampling)
    if config.aggregator != "fedavg":
        rule, f = parse_aggregator(config.aggregator), config.f
        strategy = RobustStrategy(
            strategy,
            rule,
            num_malicious_nodes=f,
            backend=config.backend,
            memory=config.memory,
        )
        rule.check(config.num_sampled, f)
    # Attacks that see the honest updates act here; all others act on the clients.
    return AttackedStrategy(strategy, config.attack, seed=config.seed)


def attack_of_arrivals(config: RunConfig) -> Attack:
    """Return the attack, aimed at the rule, for colluders in asynchronous runs."""
    rule = parse_aggregator(config.aggregator)
    return parse_attack(config.attack).against(rule, _malicious(config))


def _asynchronous(config: RunConfig) -> Strategy:
    if config.steps_on == "clients":  # each update is one of n
        step = AnyTimeSGD(1 / config.num_nodes, Fixed(gamma=1.0))
    else:
        step = _server_step(config)
    return AsyncRobustStrategy(
        step,
        config.aggregator,
        num_malicious_nodes=_malicious(config),
        client_weighting=config.client_weighting,
        memory=config.memory,
        min_available_nodes=config.num_nodes,
    )


def _server_step(config: RunConfig, **sampling: Any) -> AnyTimeSGD:
    """Build the server's step along what clients send."""
    return AnyTimeSGD(
        config.learning_rate,
        config.optimization.schedule,
        weight_decay=config.weight_decay,
        radius=config.optimization.radius,
        **sampling,
    )


def _malicious(config: RunConfig) -> int | float:
    """Return their share of the weight if it is known, or f, which is then enforced."""
    if not config.malicious_share:
        return config.num_malicious_nodes
    if isinstance(parse_client_weighting(config.client_weighting), EqualWeights):
        return config.num_malicious_nodes / config.num_nodes
    return float(config.malicious_share)
