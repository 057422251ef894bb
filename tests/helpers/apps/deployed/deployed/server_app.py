"""A server that notes, of every round, who replied to which one and when."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flwr_ctma.strategy import Checkpointed, GracePeriod, RobustStrategy
from flwr_ctma.strategy.wrappers.base import StrategyWrapper

app = ServerApp()


class Journal(StrategyWrapper):
    """Write a line for every round: what came back, and what was made of it."""

    def __init__(self, strategy, path):
        super().__init__(strategy)
        self.path = Path(path)
        self.started = time.monotonic()

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        told = [r.content["metrics"] for r in replies if r.has_content()]
        now = time.monotonic()
        line = {
            "round": server_round,
            "seconds": round(now - self.started, 2),
            "replied": sorted((m["client"], m["round"]) for m in told),
            "errors": len(replies) - len(told),
            "distance": float(np.linalg.norm(arrays["w"].numpy() - 1)),
            **{key: value for key, value in metrics.items() if "repl" in key},
        }
        self.started = now
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return arrays, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    nodes = config["num-nodes"]
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes
    )
    if config["robust"]:
        strategy = RobustStrategy(
            strategy,
            num_malicious_nodes=config["num-malicious-nodes"],
            grace_period=GracePeriod(at_least=config["grace"]),
        )
    strategy = Journal(strategy, config["journal"])
    if config["checkpoints"]:
        strategy = Checkpointed(strategy, config["checkpoints"])
    strategy.start(
        grid,
        ArrayRecord({"w": Array(np.full(config["size"], 100.0))}),
        num_rounds=config["num-server-rounds"],
        timeout=config["timeout"],
    )
