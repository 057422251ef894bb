"""What docs/combining.md says of other parts of Flower, shown in runs."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server import strategy as legacy
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping as DifferentialPrivacy,
)
from flwr.serverapp.strategy import FedAdam, FedAvg

from flwr_ctma import legacy as former
from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import IPM
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import (
    AttackedStrategy,
    Checkpointed,
    Observed,
    RobustStrategy,
)

NUM_NODES, MALICIOUS = 10, 3

app = ClientApp()


@app.train()
def train(message, context):
    (x,) = message.content["arrays"].to_numpy_ndarrays()
    content = RecordDict(
        {
            "arrays": ArrayRecord([(x + 1).astype(x.dtype)]),
            "metrics": MetricRecord({"num-examples": 10}),
        }
    )
    return Message(content, reply_to=message)


def averaging():
    return FedAvg(fraction_evaluate=0.0, min_available_nodes=NUM_NODES)


def start(strategy, client_app, model):
    grid = InProcessGrid(client_app, NUM_NODES)
    return strategy.start(grid, ArrayRecord([model]), num_rounds=1)


@pytest.mark.parametrize(
    "model", [np.frombuffer(b'{"learner": []}', np.uint8), np.empty(0, np.uint8)]
)
def test_trees_are_refused_before_anybody_is_asked(model):
    """As Flower's XGBoost app sends them: bytes, and none in the first round."""
    asked = []

    def note(message, context, call_next):
        asked.append(message)
        return call_next(message, context)

    strategy = RobustStrategy(averaging(), num_malicious_nodes=MALICIOUS)
    with pytest.raises(ValueError, match="such as XGBoost's trees, cannot be averaged"):
        start(strategy, ClientApp(mods=[note]), model)
    assert not asked


def test_differential_privacy_outside_ends_the_run_at_one_bad_reply():
    strategy = RobustStrategy(averaging(), num_malicious_nodes=MALICIOUS)
    bad = ByzantineMod("malformed", nodes=1).around(app)
    start(strategy, bad, np.zeros(2))
    with pytest.raises(ValueError):
        start(DifferentialPrivacy(strategy, 1.0, 1.0, NUM_NODES), bad, np.zeros(2))


@pytest.mark.parametrize(
    ("rule", "far"),
    [
        ("mean", 2 / 9),
        ("ctma(gm)", 4 / 3),
        ("nnm(cwmed)", 4 / 3),
        ("cwmed", 2),
        ("gm", 2),
        ("krum", 2),
    ],
)
def test_one_client_moves_a_robust_rule_further_than_a_mean(rule, far):
    """Noise for a mean hides that one of n rows within a ball is replaced."""
    rows = np.ones((9, 1))
    rows[5:] = -1.0
    replaced = rows.copy()
    replaced[4] = -1.0
    rule = parse_aggregator(rule)
    assert rule(rows, f=3) - rule(replaced, f=3) == pytest.approx(far)


def test_all_wrappers_around_a_server_optimiser(tmp_path):
    """In the order of the page; colluders who turn around move nothing."""
    inside = FedAdam(fraction_evaluate=0.0, min_available_nodes=NUM_NODES)
    robust = RobustStrategy(inside, num_malicious_nodes=MALICIOUS)
    attacked = AttackedStrategy(robust, IPM(epsilon=9.0), MALICIOUS)
    lines = []
    around = Checkpointed(Observed(attacked, lines.append), tmp_path)
    result = start(around, app, np.zeros(2))
    assert (result.arrays["0"].numpy() > 0).all()
    assert [line["round"] for line in lines] == [0, 1]
    assert len(lines[1]["trimmed"]) == MALICIOUS


class Client(NumPyClient):
    def __init__(self, partition):
        self.step = -5.0 if partition < MALICIOUS else 1.0

    def fit(self, parameters, config):
        return [parameters[0] + self.step], 10, {}


def securely(strategy, rounds=1):
    """Run a round of SecAgg+ as Flower's example does."""
    server = ServerApp()

    @server.main()
    def main(grid, context):
        config = ServerConfig(num_rounds=rounds)
        known = LegacyContext(context=context, config=config, strategy=strategy)
        DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(3, 2))(grid, known)

    clients = ClientApp(
        lambda context: Client(context.node_config["partition-id"]).to_client(),
        mods=[secaggplus_mod],
    )
    context = Context(1, 1, {}, RecordDict(), {})
    server(InProcessGrid(clients, NUM_NODES), context)


def test_secure_aggregation_leaves_nothing_to_compare():
    """Without the refusal, ten equal results would all be accepted."""
    seen = []

    class Noting(legacy.FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            seen.extend(result.parameters for _, result in results)
            return super().aggregate_fit(server_round, results, failures)

    def strategy(kind):
        return kind(
            fraction_evaluate=0.0,
            min_fit_clients=NUM_NODES,
            min_available_clients=NUM_NODES,
            initial_parameters=ndarrays_to_parameters([np.zeros(4)]),
        )

    securely(strategy(Noting))
    assert len(seen) == NUM_NODES
    assert all(parameters is seen[0] for parameters in seen)
    robust = former.RobustStrategy(strategy(legacy.FedAvg), num_malicious_nodes=3)
    with pytest.raises(ValueError, match="Secure aggregation hides what"):
        securely(robust)
