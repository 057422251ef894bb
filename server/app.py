"""The ServerApp: one model, under any rule and against any attack."""

import random
import time
from collections import Counter
from collections.abc import Callable
from logging import INFO, WARNING
from typing import cast

import torch
from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import save_file

from clients.config import RunConfig
from clients.models import build_model
from clients.task import (
    Examples,
    evaluate,
    find_device,
    load_held_out,
)
from flwr_ctma.attacks import Backdoor, iter_attacks, parse_attack
from flwr_ctma.attacks.grid import AttackedGrid
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import GracePeriodGrid, Observed
from flwr_ctma.tracking.run_folder import RunFolder
from server.journal import Journal
from server.strategies import attack_of_arrivals, build_strategy

__all__ = ["app"]

# Seconds for nodes to connect, and to answer a query.
_LONGEST_WAIT = 120.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model, and evaluate it on held-out examples."""
    config = RunConfig.of(context.run_config)
    random.seed(config.seed)  # Flower's strategies sample nodes with it
    clock = clock_of(grid, config)
    strategy = build_strategy(config)
    device = find_device(config.device)
    held_out = load_held_out(config).to(device)
    stamped = with_trigger(held_out, config)
    model = build_model(held_out, config).to(device)
    # On a CPU, pooling takes a third of the time so, convolutions two thirds.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    partitions = query_partitions(grid, config.num_nodes, config.num_malicious_nodes)
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


def clock_of(grid: Grid, config: RunConfig) -> Callable[[], float] | None:
    """Return the virtual clock of the grid, or None if it has none."""
    clock: Callable[[], float] | None = getattr(grid, "clock", None)
    if config.arrivals != "real" and clock is None:
        raise parameter_error(
            "arrivals",
            "`real` where clients run in real time",
            config.arrivals,
            "`flwr-ctma simulate` and `flwr-ctma sweep` have a virtual clock.",
        )
    return clock


def with_trigger(held_out: Examples, config: RunConfig) -> Examples | None:
    """Return held-out examples with a backdoor's trigger and its target as the label.

    The accuracy on these is the backdoor's success rate. None without a backdoor.
    """
    for attack in iter_attacks(parse_attack(config.attack)):
        if isinstance(attack, Backdoor):
            others = held_out[held_out.labels != attack.target]
            labels = torch.full_like(others.labels, attack.target)
            return Examples(attack.stamp(others.images), labels, held_out.num_classes)
    return None


def query_partitions(
    grid: Grid, num_nodes: int, num_malicious_nodes: int = 0
) -> dict[int, int]:
    """Wait for the nodes, and ask each for its partition: for the report alone.

    A partition belongs to the node that the answered message was sent to. Where two
    nodes claim the same partition, neither has it.
    """
    deadline = time.monotonic() + _LONGEST_WAIT
    seen = -1
    while len(nodes := list(grid.get_node_ids())) < num_nodes:
        if time.monotonic() > deadline:
            raise parameter_error(
                "num-nodes",
                f"at most {len(nodes)}: no more nodes came in {_LONGEST_WAIT:.0f} s",
                num_nodes,
                "Start more SuperNodes, or the simulation with "
                f'`--federation-config "num-supernodes={num_nodes}"`.',
            )
        if len(nodes) != seen:
            seen = len(nodes)
            log(
                INFO,
                "Waiting up to %.0f s for nodes to connect: %d of `num-nodes` = %d are "
                "connected. Flower's simulation starts two unless it is started with "
                '`--federation-config "num-supernodes=%d"`.',
                *(deadline - time.monotonic(), seen, num_nodes, num_nodes),
            )
        time.sleep(0.5)
    log(INFO, "Asking %d nodes for their partitions", len(nodes))
    queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    if not isinstance(grid, InProcessGrid):  # whose clients answer at once
        f = min(num_malicious_nodes, (len(nodes) - 1) // 2)
        grid = GracePeriodGrid(grid, f, reply_limit=ReplyLimit(allowance=2**20))
    replies = list(grid.send_and_receive(queries, timeout=_LONGEST_WAIT))
    asked = {q.metadata.message_id: q.metadata.dst_node_id for q in queries}
    claims: dict[int, int] = {}
    for reply in replies:
        node = asked.get(reply.metadata.reply_to_message_id)
        partition = _partition_of(reply) if reply.has_content() else None
        if node is not None and partition in range(num_nodes):
            claims.setdefault(node, cast(int, partition))
    claimed = Counter(claims.values())
    twice = sorted(partition for partition, n in claimed.items() if n > 1)
    if twice:
        log(WARNING, "Several nodes claim the partitions %s: none has them", twice)
    return {node: p for node, p in claims.items() if claimed[p] == 1}


def _partition_of(reply: Message) -> int | None:
    """Return the partition that a node claims; None if the reply names none."""
    metrics = reply.content.metric_records.get("metrics", MetricRecord())
    partition = metrics.get("partition-id")
    return partition if type(partition) is int else None
