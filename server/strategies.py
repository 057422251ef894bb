"""What the ServerApp aggregates with: in rounds, or at every arrival."""

from typing import Any

import numpy as np
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
    """Build what averages and steps, around it a robust rule, around that an attack."""
    sampling: dict[str, Any] = {
        "fraction_train": config.fraction_train,
        "fraction_evaluate": config.fraction_evaluate,
        "min_train_nodes": config.num_sampled,
        "min_available_nodes": config.num_nodes,
    }
    strategy: Strategy
    if config.asynchronous:
        return _at_every_arrival(config)
    if config.steps_on == "clients":
        strategy = FedAvg(**sampling)
    else:
        strategy = _step_of_the_server(config, **sampling)
    if config.aggregator != "fedavg":
        rule, f = parse_aggregator(config.aggregator), config.num_malicious_nodes
        strategy = RobustStrategy(
            strategy,
            rule,
            num_malicious_nodes=f,
            backend=config.backend,
        )
        rule(np.zeros((config.num_sampled, 1)), f)  # a ValueError if n is too small
    # Attacks that see the honest updates act here, on vectors or on models as they are
    # sent; to all others this is nothing.
    return AttackedStrategy(strategy, config.attack, seed=config.seed)


def attack_of_arrivals(config: RunConfig) -> Attack:
    """Aim the attack, if it needs that, for colluders whose replies come one by one."""
    rule = parse_aggregator(config.aggregator)
    return parse_attack(config.attack).against(rule, _malicious(config))


def _at_every_arrival(config: RunConfig) -> Strategy:
    if config.steps_on == "clients":  # each arrival is one of n updates of the model
        step = AnyTimeSGD(1 / config.num_nodes, Fixed(gamma=1.0))
    else:
        step = _step_of_the_server(config)
    return AsyncRobustStrategy(
        step,
        config.aggregator,
        num_malicious_nodes=_malicious(config),
        client_weighting=config.client_weighting,
        min_available_nodes=config.num_nodes,
    )


def _step_of_the_server(config: RunConfig, **sampling: Any) -> AnyTimeSGD:
    """Build the step along what clients send, where they take none of their own."""
    return AnyTimeSGD(
        config.learning_rate,
        config.optimization.schedule,
        weight_decay=config.weight_decay,
        radius=config.optimization.radius,
        **sampling,
    )


def _malicious(config: RunConfig) -> int | float:
    """Their share of the weight if it is known, or else f, which is then enforced."""
    if not config.malicious_share:
        return config.num_malicious_nodes
    if isinstance(parse_client_weighting(config.client_weighting), EqualWeights):
        return config.num_malicious_nodes / config.num_nodes
    return float(config.malicious_share)
