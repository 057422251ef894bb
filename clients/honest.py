"""The honest client: it trains the model that it is sent on its own examples."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from clients.config import RunConfig
from clients.task import Examples, build_model, evaluate, find_device, load_train
from flwr_ctma import npy
from flwr_ctma.attacks import poison
from flwr_ctma.errors import wrong
from flwr_ctma.optim import load_state_record, state_record

__all__ = ["app", "partition_of"]

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Tell which partition this is, for the server's report."""
    partition, _ = partition_of(context)
    return _reply(message, {"partition-id": partition})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the model that this client's steps lead to, or one with its vector."""
    config = RunConfig.of(context.run_config)
    examples, model, weights = _load(message, context, config)
    sent = message.content.config_records["config"]
    images, labels = poison(examples.images, examples.labels, sent)  # if ordered to
    examples = Examples(images, labels, examples.num_classes)
    partition, _ = partition_of(context)
    rng = np.random.default_rng([config.seed, partition, int(sent["server-round"])])  # type: ignore[arg-type]
    batches = [
        _batch(examples, config.batch_size, rng) for _ in range(config.local_steps)
    ]
    if config.steps_on == "clients":
        optimizer = config.optimization.local(
            weights, model.buffers(), config.learning_rate, config.weight_decay
        )
        steps = [[batch] for batch in batches]
    else:
        optimizer = config.optimization.vector(weights, model.buffers())
        steps = [batches]
    load_state_record(optimizer, context.state.array_records.get("optimizer"))
    model.train()
    losses = [
        float(optimizer.step(_closure(model, weights, step, config.clip_norm)))
        for step in steps
    ]
    context.state["optimizer"] = state_record(optimizer)
    metrics = {"num-examples": len(examples), "train-loss": float(np.mean(losses))}
    return _reply(message, metrics, ArrayRecord(model.state_dict()))


@app.evaluate()
def test(message: Message, context: Context) -> Message:
    """Measure the model on this client's examples: its share of the objective."""
    config = RunConfig.of(context.run_config)
    examples, model, _ = _load(message, context, config)
    loss, accuracy = evaluate(model, examples)
    metrics = {"num-examples": len(examples), "loss": loss, "accuracy": accuracy}
    return _reply(message, metrics)


def _closure(
    model: nn.Module, weights: nn.Parameter, batches: list[Examples], clip_norm: float
) -> Callable[[], float]:
    """Evaluate the mean loss of some batches, and its gradient, clipped."""

    def closure() -> float:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss: Tensor = functional.cross_entropy(model(batch.images), batch.labels)
            (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / len(batches)
        gradients = [x.grad for x in model.parameters() if x.grad is not None]
        weights.grad = parameters_to_vector(gradients)
        if clip_norm > 0:
            nn.utils.clip_grad_norm_(weights, clip_norm)
        return total

    return closure


def _batch(examples: Examples, size: int, rng: np.random.Generator) -> Examples:
    chosen = rng.permutation(len(examples))[:size]
    return examples[torch.from_numpy(chosen).to(examples.labels.device)]


def _load(
    message: Message, context: Context, config: RunConfig
) -> tuple[Examples, nn.Module, nn.Parameter]:
    """Load the client's examples, the model that the server sent, and its weights."""
    # One core a client: Ray runs as many clients as there are cores, and sums of
    # floats come out the same wherever they run.
    torch.set_num_threads(1)
    device = find_device(config.device)
    examples = load_train(config, *partition_of(context))
    model, weights = _scratch(
        examples.images.shape[1:], examples.num_classes, config, device
    )
    model.load_state_dict(_tensors(message.content.array_records["arrays"]))
    return examples.to(device), model, weights


@lru_cache(maxsize=1)
def _scratch(
    shape: tuple[int, ...], num_classes: int, config: RunConfig, device: torch.device
) -> tuple[nn.Module, nn.Parameter]:
    """Build a model to load into: one will do for all clients of a process.

    Its parameters are views of one vector, so that an optimizer has one tensor to step
    along and to keep, where it would have dozens.
    """
    like = Examples(torch.empty(0, *shape), torch.empty(0), num_classes)
    model = build_model(like, config).to(device)
    weights = nn.Parameter(parameters_to_vector(model.parameters()).detach())
    vector_to_parameters(weights.data, model.parameters())
    return model, weights


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    tensors = {}
    for key, array in record.items():
        _, shape, flat = npy.view(array.data)
        tensors[key] = torch.from_numpy(flat.copy()).view(shape)
    return tensors


def partition_of(context: Context) -> tuple[int, int]:
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
