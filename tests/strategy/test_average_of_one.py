"""Flower's average of one robust reply is that reply, and is not computed."""

from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedProx, fedavg

from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import RobustStrategy
from flwr_ctma.strategy.anytime import AnyTimeSGD

START = {"w": np.arange(4, dtype=np.float32), "steps": np.array([3, 5])}


# A step of size 1, and no average of the iterates.
step = partial(AnyTimeSGD, 1.0, "fixed(storm-beta=1, gamma=1)")


class OwnClass(FedAvg):
    """It may look at what it averages."""


def run(inner, monkeypatch):
    """Return the model, and the number of arrays in the replies that were averaged."""
    app, seen = ClientApp(), []

    @app.train()
    def train(message, context):
        moved = context.node_config["partition-id"] + 1
        arrays = {k: Array(a.numpy() + moved) for k, a in message.content["a"].items()}
        content = {"a": ArrayRecord(arrays), "m": MetricRecord({"num-examples": 2})}
        return Message(RecordDict(content), reply_to=message)

    average = fedavg.aggregate_arrayrecords

    def counted(records, key):
        seen.extend(len(record["a"]) for record in records)
        return average(records, key)

    monkeypatch.setattr(fedavg, "aggregate_arrayrecords", counted)
    strategy = RobustStrategy(inner, "mean", num_malicious_nodes=0)
    initial = ArrayRecord({k: Array(a) for k, a in START.items()})
    result = strategy.start(InProcessGrid(app, 3), initial, num_rounds=1)
    return {key: array.numpy() for key, array in result.arrays.items()}, seen


@pytest.mark.parametrize(
    ("kind", "averaged"),
    [(FedAvg, [0]), (FedProx, [0]), (step, [0]), (FedAvgM, [2]), (OwnClass, [2])],
)
def test_arrays_are_averaged_where_a_strategy_does_more(kind, averaged, monkeypatch):
    settings = {"fraction_evaluate": 0.0, "arrayrecord_key": "a"}
    settings |= {"proximal_mu": 0.1} if kind is FedProx else {}
    model, seen = run(kind(**settings), monkeypatch)
    assert seen == averaged
    for key, start in START.items():
        np.testing.assert_array_equal(model[key], start + 2)
        assert model[key].dtype == start.dtype
