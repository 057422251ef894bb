"""The honest client: it trains the model that it is sent on its own examples."""

from functools import lru_cache

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from clients.config import RunConfig
from clients.task import Examples, build_model, evaluate, find_device, load_train
from flwr_ctma import npy
from flwr_ctma.attacks import poison
from flwr_ctma.errors import wrong
from flwr_ctma.optim import load_state_record, state_record

__all__ = ["app"]

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Tell which partition this is, for the server's report."""
    partition, _ = _partition(context)
    return _reply(message, {"partition-id": partition})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the model that this client's steps lead to, or one with its vector."""
    config = RunConfig.of(context.run_config)
    examples, model = _load(message, context, config)
    sent = message.content.config_records["config"]
    images, labels = poison(examples.images, examples.labels, sent)  # if ordered to
    examples = Examples(images, labels, examples.num_classes)
    optimization = config.optimization
    partition, _ = _partition(context)
    rng = np.random.default_rng([config.seed, partition, int(sent["server-round"])])  # type: ignore[arg-type]
    batches = [
        _batch(examples, config.batch_size, rng) for _ in range(config.local_steps)
    ]
    if config.steps_on == "clients":
        optimizer = optimization.local(model, config.learning_rate, config.weight_decay)
        steps = [[batch] for batch in batches]
    else:
        optimizer = optimization.vector(model)
        steps = [batches]
    load_state_record(optimizer, context.state.array_records.get("optimizer"))
    model.train()
    losses = [_step(model, optimizer, step, config.clip_norm) for step in steps]
    context.state["optimizer"] = state_record(optimizer)
    metrics = {"num-examples": len(examples), "train-loss": float(np.mean(losses))}
    return _reply(message, metrics, ArrayRecord(model.state_dict()))


@app.evaluate()
def test(message: Message, context: Context) -> Message:
    """Measure the model on this client's examples: its share of the objective."""
    config = RunConfig.of(context.run_config)
    examples, model = _load(message, context, config)
    loss, accuracy = evaluate(model, examples)
    metrics = {"num-examples": len(examples), "loss": loss, "accuracy": accuracy}
    return _reply(message, metrics)


def _step(
    model: nn.Module, optimizer: Optimizer, batches: list[Examples], clip_norm: float
) -> float:
    """Step once, along the mean gradient of some batches; give their mean loss."""

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss: Tensor = functional.cross_entropy(model(batch.images), batch.labels)
            (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / len(batches)
        if clip_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        return total

    return float(optimizer.step(closure))


def _batch(examples: Examples, size: int, rng: np.random.Generator) -> Examples:
    chosen = rng.permutation(len(examples))[:size]
    return examples[torch.from_numpy(chosen).to(examples.labels.device)]


def _load(
    message: Message, context: Context, config: RunConfig
) -> tuple[Examples, nn.Module]:
    """Load the client's examples, and the model that the server sent."""
    # One core a client: Ray runs as many clients as there are cores, and sums of
    # floats come out the same wherever they run.
    torch.set_num_threads(1)
    device = find_device(config.device)
    examples = load_train(config, *_partition(context))
    model = _scratch(examples.images.shape[1:], examples.num_classes, config).to(device)
    model.load_state_dict(_tensors(message.content.array_records["arrays"]))
    return examples.to(device), model


@lru_cache(maxsize=1)
def _scratch(shape: tuple[int, ...], num_classes: int, config: RunConfig) -> nn.Module:
    """Build a model to load weights into: one will do for the clients of a process."""
    like = Examples(torch.empty(0, *shape), torch.empty(0), num_classes)
    return build_model(like, config)


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    tensors = {}
    for key, array in record.items():
        _, shape, flat = npy.view(array.data)
        tensors[key] = torch.from_numpy(flat.copy()).view(shape)
    return tensors


def _partition(context: Context) -> tuple[int, int]:
    """Tell which partition of how many this node has."""
    for key in ("partition-id", "num-partitions"):
        if key not in context.node_config:
            raise wrong(
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
