"""The memory of one large round, and of a thousand rounds: docs/reliability.md.

python -m tests.benchmark.load round 1000 1e5
python -m tests.benchmark.load round 17 1e8
python -m tests.benchmark.load soak 1000 soak.png
"""

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from flwr_ctma import parse_aggregator
from flwr_ctma.mods import ByzantineMod
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy import Checkpointed, DivergenceGuard, Observed, RobustStrategy
from tests.benchmark.scale import TENSORS, Peaks, clock, own_memory


def model(d: int, seed: int = 0) -> ArrayRecord:
    """d random numbers in ten tensors, made one by one."""
    rng = np.random.default_rng(seed)
    draw = (rng.random(d // TENSORS, np.float32) for _ in range(TENSORS))
    return ArrayRecord({str(i): Array(tensor) for i, tensor in enumerate(draw)})


def one_round(n: int, d: int, rule: str = "ctma(gm)") -> None:
    """From n messages to the next model: peak memory, the messages included."""
    # Compilers, and the code for n rows, are not memory of the round.
    parse_aggregator(rule).aggregate(np.eye(n, 64, dtype=np.float32), f=n // 10)
    before = own_memory() / 1e9
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=n)
    strategy = RobustStrategy(inner, rule, num_malicious_nodes=n // 10)
    grid = InProcessGrid(ClientApp(), n)
    peaks = Peaks()
    asked = strategy.configure_train(1, model(d), ConfigRecord(), grid)
    replies = []
    for i, message in enumerate(asked):
        message.metadata.__dict__["_message_id"] = str(i)
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
        content = RecordDict({"arrays": model(d, i), "metrics": metrics})
        replies.append(Message(content, reply_to=message))
    (_, metrics), seconds = clock(lambda: strategy.aggregate_train(1, replies))
    assert metrics["replies-accepted"] == n
    payload, output = 4 * n * d / 1e9, 4 * d / 1e9
    peak, bound = peaks.stop() - before, 1.25 * payload + output
    print(f"{rule}, n = {n}, d = {d:.3g}: {seconds:.1f} s from messages to model")
    print(f"messages {payload:.3f} GB, model {output:.4f} GB, bound {bound:.3f} GB")
    print(f"peak {peak:.3f} GB: {peak / bound:.2f} of the bound")


def soak(rounds: int, n: int = 17, d: int = 100_000) -> list[float]:
    """Memory in MB after each round of a run in which 5 of n clients do their worst."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    app = ClientApp(
        mods=[
            ByzantineMod("malformed", nodes=[0, 1]),
            ByzantineMod("nonfinite", nodes=[2]),
            ByzantineMod("signflip", nodes=[3, 4]),
        ]
    )

    @app.train()
    def train(message: Message, context: object) -> Message:
        rng = np.random.default_rng(message.metadata.dst_node_id)
        moved = {
            key: Array(array.numpy() * np.float32(0.9) + rng.random(1, np.float32))
            for key, array in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
        content = {"arrays": ArrayRecord(moved), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    megabytes: list[float] = []
    inner = FedAdam(fraction_evaluate=0.0, min_available_nodes=n, min_train_nodes=n)
    robust = RobustStrategy(inner, num_malicious_nodes=5)
    watched = Observed(
        DivergenceGuard(robust, rollback=True),
        lambda line: megabytes.append(own_memory() / 1e6),
    )
    with tempfile.TemporaryDirectory() as folder:
        strategy = Checkpointed(watched, Path(folder))
        strategy.start(InProcessGrid(app, n), model(d), rounds)
    return megabytes


def draw(megabytes: list[float], path: str) -> None:
    """Draw memory by round."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
    axes.plot(megabytes, linewidth=1)
    axes.set(xlabel="round", ylabel="resident memory, MB")
    axes.set_ylim(0, 1.2 * max(megabytes))
    axes.set_xlim(0, len(megabytes) - 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what the first argument names."""
    name, size, *rest = sys.argv[1:]
    if name == "round":
        one_round(int(size), int(float(rest[0])), *rest[1:])
        return
    megabytes = soak(int(size))
    quarter = len(megabytes) // 4
    means = [np.mean(megabytes[k * quarter :][:quarter]) for k in range(4)]
    print("MB, mean of each quarter:", *(f"{mean:.1f}" for mean in means))
    draw(megabytes, rest[0])


if __name__ == "__main__":
    main()
