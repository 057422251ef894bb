"""Asynchronous training; what comes of it is a line a round, a row for each node."""

import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from asyncapp.client import target
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    Checkpointed,
    Observed,
)
from flwr_ctma.tracking.run_folder import RunFolder

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train from 0, or from where a run with the same output was."""
    config = context.run_config
    strategy = AsyncRobustStrategy(
        AnyTimeSGD(0.1, "fixed(gamma=1)"),
        num_malicious_nodes=config["num-malicious-nodes"],
        min_available_nodes=config["num-nodes"],
        max_seconds=config["max-seconds"],
    )
    folder = RunFolder(Path(config["output"]))
    if not folder.path.exists():
        folder.begin(config)

    def measure(number: int, arrays: ArrayRecord) -> MetricRecord:
        x = arrays["x"].numpy()
        return MetricRecord({"loss": float(np.mean((x - target(len(x))) ** 2))})

    observed = Observed(strategy, folder.append)
    Checkpointed(observed, folder.path / "checkpoints").start(
        grid,
        ArrayRecord({"x": Array(np.zeros(config["width"]))}),
        config["num-rounds"],
        evaluate_fn=measure,
    )
    known = strategy.clients
    rows = {
        int(client.metrics["partition-id"]): {
            "delivered": client.delivered,
            "weighs": node in known.present,
        }
        for node, client in known.clients.items()
        if client.metrics
    }
    (folder.path / "nodes.json").write_text(json.dumps(rows))
