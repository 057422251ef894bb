"""What one faulty client of twelve does to Flower's FedAvg, and to RobustStrategy.

    python -m tests.helpers.fault_table

It runs one round of training in one process for every fault in
`tests/strategy/test_faults.py`. A loss, or a coordinate of the model, is off if it is
outside of the range of the honest clients.
"""

import logging

import numpy as np

from flwr_ctma.strategy import RobustStrategy
from tests.strategy import test_faults as faults

PLACE = faults.N // 2


def off(arrays, metrics):
    """Name what left the range of the honest clients."""
    found = []
    honest = [faults.trained(client) for client in range(faults.N)]
    values = {key: array.numpy() for key, array in arrays.items()}
    if any(np.iscomplexobj(value) for value in values.values()):
        found.append("a complex model")
    elif not all(np.isfinite(value).all() for value in values.values()):
        found.append("a model of NaN or ∞")
    else:
        within = [
            (np.min([h[k] for h in honest], 0) - 1e-6 <= v).all()
            and (v <= np.max([h[k] for h in honest], 0) + 1e-6).all()
            for k, v in values.items()
        ]
        found += [] if all(within) else ["a model that is off"]
    if not 1.0 - 1e-9 <= metrics["loss"] <= 1.0 + 0.01 * (faults.N - 1) + 1e-9:
        found.append("a loss that is off")
    return " and ".join(found)


def flower(fault):
    """Tell what comes of a fault under FedAvg."""
    try:
        _, (arrays, metrics) = faults.ask(faults.everyone(), fault, PLACE, "train")
    except Exception as error:
        return f"the run ends: {type(error).__name__}"
    return off(arrays, metrics) or "among the honest"


def ours(fault):
    """Tell what comes of a fault under RobustStrategy."""
    strategy = RobustStrategy(faults.everyone(), num_malicious_nodes=faults.F)
    node, (arrays, metrics) = faults.ask(strategy, fault, PLACE, "train")
    parameter_error = off(arrays, metrics)
    if parameter_error:
        return parameter_error
    if strategy.ledger[node].rejected:
        return f"rejected: {next(iter(strategy.ledger[node].rejected))}"
    if strategy.ledger[node].missing:
        return "the round continues without it"
    if node in metrics["nodes-misreporting"]:
        return "its metrics do not count"
    return "among the honest"


def table():
    """Give what one of twelve sends, and what comes of it: FedAvg, RobustStrategy."""
    rows = {**faults.ARRAYS, **faults.METRICS}
    with np.errstate(all="ignore"):
        return [(name, flower(fault), ours(fault)) for name, (fault, _) in rows.items()]


def spelled(line):
    """Spell a line as a page has it."""
    return f"| {' | '.join(line)} |"


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    for line in table():
        print(spelled(line))
