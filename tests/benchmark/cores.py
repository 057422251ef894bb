"""Wall time of a batched round on one core and on two, in turns.

    python -m tests.benchmark.cores MNIST_FOLDER

Nothing else should run. A line for each batch size: the medians of both.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr_ctma.experiments.app import FlowerApp
from flwr_ctma.simulation.batched import BatchedGrid
from tests.benchmark.byzfl_simulation import HONEST, MALICIOUS, SETTINGS

APP = FlowerApp(Path(__file__).parents[2])
ROUNDS, TURNS = 20, 3
CASES = {
    "batches of 32, one step": {"batch-size": 32},
    "batches of 64, five steps": {
        **{"batch-size": 64, "local-steps": 5, "steps-on": "clients"},
    },
}


def seconds(config: dict[str, object], rounds: int) -> float:
    """Return the wall time of a run."""
    with TemporaryDirectory() as folder:
        own = {"output": folder, "num-server-rounds": rounds}
        run_config = APP.run_config(SETTINGS, config, own)
        began = time.perf_counter()
        APP.simulate(HONEST + MALICIOUS, run_config, BatchedGrid)
        return time.perf_counter() - began


def measure(dataset: str) -> None:
    """Print the milliseconds of a round of each case."""
    for case in CASES.values():
        config = {**case, "dataset": dataset}
        seconds(config, 1)
        taken = seconds(config, 1 + ROUNDS) - seconds(config, 1)
        print("ms", 1000 * taken / ROUNDS)


def main(dataset: str) -> None:
    """Let processes of one and of two threads take turns."""
    found: dict[int, list[list[float]]] = {1: [], 2: []}
    for _ in range(TURNS):
        for threads, turns in found.items():
            environment = {**os.environ, "FLWR_CTMA_NUM_THREADS": str(threads)}
            words = [sys.executable, "-m", "tests.benchmark.cores", dataset, "one"]
            ended = subprocess.run(
                words, env=environment, capture_output=True, text=True, check=True
            )
            lines = [one for one in ended.stdout.splitlines() if one.startswith("ms ")]
            turns.append([float(line[3:]) for line in lines])
    for i, name in enumerate(CASES):
        one, two = (statistics.median(t[i] for t in found[k]) for k in (1, 2))
        print(f"{name}: {one:.0f} ms, on two cores {two:.0f} ms, {one / two:.1f} ×")


if __name__ == "__main__":
    if sys.argv[2:]:
        measure(sys.argv[1])
    else:
        main(sys.argv[1])
