"""The threads of BLAS change no bit of a round, as the number of cores does not."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from threadpoolctl import threadpool_limits

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import Budget
from flwr_ctma.attacks.collusion import Colluders
from flwr_ctma.messages.schema import ReplySchema
from flwr_ctma.strategy.anytime import AnyTimeSGD
from flwr_ctma.strategy.asynchronous.clients import ClientUpdates
from flwr_ctma.strategy.asynchronous.weighting import EqualWeights
from flwr_ctma.strategy.round.aggregate import aggregate_replies

ROWS = np.random.default_rng(0).standard_normal((400, 3000))
SCHEMA = ReplySchema(ArrayRecord([np.zeros(3000)]))
RULE = parse_aggregator("nnm(gm)")


def replies():
    for row in ROWS:
        content = {"arrays": ArrayRecord([row]), "metrics": MetricRecord()}
        yield SCHEMA.read(RecordDict(content))


def of_a_round():
    found = aggregate_replies(RULE, SCHEMA, [*replies()], Budget(400, 50))
    return [*found.update, found.distances]


def of_arrivals():
    clients = ClientUpdates(50, None, EqualWeights())
    clients.set_present(range(400))
    for node, reply in enumerate(replies()):
        clients.ask(node)
        clients.replace(node, SCHEMA, 0, reply)
        clients.count(node)
    return [*clients.average(SCHEMA, RULE).values()]


def of_an_attack():
    pga = Colluders("pga(evaluations=9)", 10, 0, aimed=True)
    wide = ROWS.reshape(60, -1)
    return [pga.craft(1, wide[10:], wide[:10], defence=(RULE, 10))]


def of_a_projected_step():
    step, still = AnyTimeSGD(0.1, radius=1.0), ArrayRecord([np.zeros(10**6)])
    sent = ArrayRecord([ROWS.ravel()[: 10**6]])
    return [step.step(sent, still)["0"].numpy()]


@pytest.mark.parametrize(
    "compute", [of_a_round, of_arrivals, of_an_attack, of_a_projected_step]
)
def test_threads_of_blas_change_no_bit(compute):
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(compute())
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
