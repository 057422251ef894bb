"""Backends in Flower's own simulation, and on a cluster of which a machine is lost."""

import numpy as np
import pytest
import ray
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from flwr_ctma.engine.ray import RayBackend
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.strategy import RobustStrategy

N = 9


@pytest.mark.long
def test_backends_agree_in_a_simulation():
    client, server, found = ClientApp(), ServerApp(), {}

    @client.train()
    def train(message, context):
        rng = np.random.default_rng(context.node_config["partition-id"])
        w = message.content["arrays"]["w"].numpy()
        near = (w + 1 + 0.1 * rng.standard_normal(w.shape)).astype(np.float32)
        arrays = ArrayRecord({"w": Array(near)})
        content = {"arrays": arrays, "metrics": MetricRecord({"loss": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid, context):
        initial = ArrayRecord({"w": Array(np.zeros(200_000, np.float32))})
        for backend in ("local", "ray(cpus=0, workers=2)"):
            inner = FedAvg(
                fraction_evaluate=0.0, min_train_nodes=N, min_available_nodes=N
            )
            strategy = RobustStrategy(inner, num_malicious_nodes=2, backend=backend)
            result = strategy.start(grid, initial, num_rounds=2)
            found[backend] = result.arrays["w"].numpy()

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=N,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0}},
    )
    assert len(found) == 2 and (found["local"] != 0).all()
    for arrays in found.values():
        np.testing.assert_allclose(arrays, found["local"], rtol=0, atol=1e-6)


@pytest.mark.long
def test_a_machine_that_is_lost_takes_no_shard_with_it():
    """Two machines of one core, each a process of its own; then one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)
    try:
        x = np.random.default_rng(0).standard_normal((5, 90_000))
        local = Updates.of([Layer(x)])
        backend = RayBackend(address=cluster.address, timeout=5)
        remote = Updates(backend.place(local.stack))

        def node(worker):
            return ray.get_runtime_context().get_node_id()

        where = {
            ray.get(worker.__ray_call__.remote(node))
            for worker in backend._pool.workers
        }
        assert len(where) == 2
        cluster.remove_node(other)
        np.testing.assert_allclose(remote.gram(), local.gram(), rtol=1e-12)
        c = np.ones(5)
        np.testing.assert_array_equal(remote.combine(c)[0], local.combine(c)[0])
    finally:
        ray.shutdown()
        cluster.shutdown()
