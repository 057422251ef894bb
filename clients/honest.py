"""The honest client: it trains the received model on its own examples."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from clients.config import RunConfig
from clients.flat import FlatNetwork
from clients.models import build_model
from clients.task import Examples, evaluate, find_device, load_train
from flwr_ctma.attacks import poison
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import records_of
from flwr_ctma.optim.mu2sgd import load_state_record, state_record

__all__ = ["app", "partition_of"]

app = ClientApp()


@app.query()
def report_partition(message: Message, context: Context) -> Message:
    """Reply with the partition of this node, for the server's report."""
    partition, _ = partition_of(context)
    return _reply(message, {"partition-id": partition})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the trained model, or with the received model minus the vector d."""
    config = RunConfig.of(context.run_config)
    with _loaded(message, context, config) as (examples, network):
        return _train(message, context, config, examples, network)


def _train(
    message: Message,
    context: Context,
    config: RunConfig,
    examples: Examples,
    network: FlatNetwork,
) -> Message:
    sent = records_of(message.content, ConfigRecord)["config"]
    images, labels = poison(examples.images, examples.labels, sent)  # if attacked
    examples = Examples(images, labels, examples.num_classes)
    partition, _ = partition_of(context)
    rng = np.random.default_rng([config.seed, partition, int(sent["server-round"])])  # type: ignore[arg-type]
    batches = [
        _batch(examples, config.batch_size, rng) for _ in range(config.local_steps)
    ]
    if config.steps_on == "clients":
        optimizer = config.optimization.local(
            network.weights,
            network.buffers,
            config.learning_rate,
            config.weight_decay,
        )
        steps = [[batch] for batch in batches]
    else:
        optimizer = config.optimization.vector(network.weights, network.buffers)
        steps = [batches]
    load_state_record(
        optimizer, records_of(context.state, ArrayRecord).get("optimizer")
    )
    if not network.model.training:
        network.model.train()
    losses = [
        float(optimizer.step(partial(network.evaluate, step, config.clip_norm)))
        for step in steps
    ]
    context.state["optimizer"] = state_record(optimizer)
    metrics = {"num-examples": len(examples), "train-loss": float(np.mean(losses))}
    return _reply(message, metrics, network.record())


@app.evaluate()
def test(message: Message, context: Context) -> Message:
    """Evaluate the received model on this client's examples."""
    config = RunConfig.of(context.run_config)
    with _loaded(message, context, config) as (examples, network):
        loss, accuracy = evaluate(network.model, examples)
    metrics = {"num-examples": len(examples), "loss": loss, "accuracy": accuracy}
    return _reply(message, metrics)


def _batch(examples: Examples, size: int, rng: np.random.Generator) -> Examples:
    chosen = rng.permutation(len(examples))[:size]
    return examples[torch.from_numpy(chosen).to(examples.labels.device)]


@contextmanager
def _loaded(
    message: Message, context: Context, config: RunConfig
) -> Iterator[tuple[Examples, FlatNetwork]]:
    """Load the examples of this client and the received model."""
    # One core for each client: Ray runs as many clients as there are cores, and sums
    # of floats have the same bits everywhere.
    torch.set_num_threads(1)
    device = find_device(config.device)
    examples = load_train(config, *partition_of(context))
    # Clients of a BatchedGrid train at the same time; those of the next round and run
    # reuse their networks.
    unused = _networks(
        tuple(examples.images.shape[1:]), examples.num_classes, config.model, device
    )
    network = (
        unused.pop()
        if unused
        else FlatNetwork(build_model(examples, config).to(device))
    )
    network.load(records_of(message.content, ArrayRecord)["arrays"])
    yield examples.to(device), network
    unused.append(network)


@lru_cache(maxsize=4)
def _networks(
    shape: tuple[int, ...], num_classes: int, model: str, device: torch.device
) -> list[FlatNetwork]:
    """Return the networks of an architecture that no client uses at present."""
    return []


def partition_of(context: Context) -> tuple[int, int]:
    """Return the partition of this node and the number of partitions."""
    for key in ("partition-id", "num-partitions"):
        if key not in context.node_config:
            raise parameter_error(
                key,
                "in the node's config",
                None,
                "Start the SuperNode with "
                "`--node-config 'partition-id=0 num-partitions=17'`.",
            )
    return (
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
    )


def _reply(
    message: Message,
    metrics: dict[str, int | float],
    arrays: ArrayRecord | None = None,
) -> Message:
    content = RecordDict({"metrics": MetricRecord(metrics)})  # type: ignore[arg-type]
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=message)
