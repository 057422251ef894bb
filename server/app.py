"""The ServerApp: the same model under any rule, against any attack."""

import random
import time
from collections.abc import Callable
from logging import INFO

import torch
from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import save_file

from clients.config import RunConfig
from clients.task import (
    Examples,
    build_model,
    evaluate,
    find_device,
    load_held_out,
)
from flwr_ctma.attacks import Backdoor, iter_attacks, parse_attack
from flwr_ctma.attacks.grid import AttackedGrid
from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.processes import RunFailed
from flwr_ctma.strategy import Observed
from flwr_ctma.tracking.run_folder import RunFolder
from server.journal import Journal
from server.strategies import attack_of_arrivals, build_strategy

__all__ = ["app"]

_PATIENCE = 120.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and measure the model on held-out examples."""
    config = RunConfig.of(context.run_config)
    random.seed(config.seed)  # Flower's strategies sample nodes with it
    clock = clock_of(grid, config)
    strategy = build_strategy(config)
    device = find_device(config.device)
    held_out = load_held_out(config).to(device)
    stamped = with_trigger(held_out, config)
    model = build_model(held_out, config).to(device)
    partitions = query_partitions(grid, config.num_nodes)
    began = clock() if clock else 0.0
    if config.asynchronous:
        grid = AttackedGrid(grid, attack_of_arrivals(config), seed=config.seed)
    if config.folder:
        folder = RunFolder(config.folder)
        folder.begin(config.keys())
        strategy = Observed(strategy, Journal(folder, config, partitions))

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if not config.evaluates(server_round):
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = evaluate(model, held_out)
        metrics = MetricRecord({"accuracy": accuracy, "loss": loss})
        if stamped is not None:
            metrics["backdoor-success"] = evaluate(model, stamped)[1]
        if clock:
            metrics["virtual-seconds"] = clock() - began
        return metrics

    initial = ArrayRecord(model.state_dict())
    result = strategy.start(
        grid, initial, config.num_server_rounds, evaluate_fn=measure
    )
    if config.folder:
        trained = result.arrays.to_torch_state_dict()
        save_file(trained, config.folder / "model.safetensors")
    if config.num_server_rounds and result.arrays == initial:
        raise RunFailed(
            "The model is the initial one: no round had enough good replies, or all "
            "were taken back. The log says why."
        )


def clock_of(grid: Grid, config: RunConfig) -> Callable[[], float] | None:
    """Give the virtual clock of the grid, if it has one."""
    clock: Callable[[], float] | None = getattr(grid, "clock", None)
    if config.arrivals != "real" and clock is None:
        raise parameter_error(
            "arrivals",
            "`real` where clients run at a pace of their own",
            config.arrivals,
            "`flwr-ctma simulate` and `flwr-ctma sweep` have a virtual clock.",
        )
    return clock


def with_trigger(held_out: Examples, config: RunConfig) -> Examples | None:
    """Stamp the examples that a backdoor is to mislabel, and label them as it would.

    The accuracy on these is its success rate.
    """
    for attack in iter_attacks(parse_attack(config.attack)):
        if isinstance(attack, Backdoor):
            others = held_out[held_out.labels != attack.target]
            labels = torch.full_like(others.labels, attack.target)
            return Examples(attack.stamp(others.images), labels, held_out.num_classes)
    return None


def query_partitions(grid: Grid, num_nodes: int) -> dict[int, int]:
    """Wait for the nodes, and ask each which partition it has: for the report alone."""
    deadline = time.monotonic() + _PATIENCE
    while len(nodes := list(grid.get_node_ids())) < num_nodes:
        if time.monotonic() > deadline:
            raise parameter_error(
                "num-nodes",
                f"at most {len(nodes)}: no more nodes came in {_PATIENCE:.0f} s",
                num_nodes,
                "Start more SuperNodes, or the simulation with "
                f'`--federation-config "num-supernodes={num_nodes}"`.',
            )
        time.sleep(0.5)
    log(INFO, "Calling the roll of %d nodes", len(nodes))
    calls = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    return {
        reply.metadata.src_node_id: partition
        for reply in grid.send_and_receive(calls, timeout=_PATIENCE)
        if reply.has_content() and (partition := _partition_of(reply)) is not None
    }


def _partition_of(introduction: Message) -> int | None:
    """Read which partition a node says it has, if that is what it says."""
    said = introduction.content.metric_records.get("metrics", MetricRecord())
    partition = said.get("partition-id")
    return partition if isinstance(partition, int) else None
