"""Arrivals a second in Ray's simulation, of Flower alone and with the strategy.

python -m tests.benchmark.arrivals 17 1e3 4

Flower alone pushes a message to every node, pulls replies, and pushes again to who
answered: what any asynchronous strategy has to do at least. The loops run in turns, so
that they share what else the machine does, as many as the third number says; clients do
next to nothing. This file is the ServerApp as well.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from flwr_ctma.experiments.runtimes import Ray
from flwr_ctma.strategy import AnyTimeSGD, AsyncRobustStrategy

APP = Path(__file__).parents[1] / "helpers" / "apps" / "asyncapp"
ROUNDS, WARM_UP = 12, 3
LOOPS = ("flower", "ctma(gm)", "ctma(cwmed)")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Let the loops run in turns, each until n replies are in a few times."""
    config = context.run_config
    n, width = int(config["num-nodes"]), int(config["width"])
    model = ArrayRecord({"x": Array(np.zeros(width, np.float32))})
    while len(list(grid.get_node_ids())) < n:
        time.sleep(0.1)
    loops = LOOPS * int(config["turns"])
    found = [(loop, *timed(loop, grid, model, n)) for loop in loops]
    Path(str(config["output"])).write_text(json.dumps(found))


def timed(loop: str, grid: Grid, model: ArrayRecord, n: int) -> tuple[float, float]:
    """Give seconds for an arrival, and CPU seconds of the server."""
    marks: list[tuple[float, float]] = []

    def mark(*_: object) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    if loop == "flower":
        push_and_pull(grid, model, n, mark)
    else:
        step = AnyTimeSGD(0.1, "fixed(gamma=1)")
        strategy = AsyncRobustStrategy(step, loop, num_malicious_nodes=(n - 1) // 3)
        strategy.start(grid, model, ROUNDS, evaluate_fn=mark)
    taken = np.subtract(marks[-1], marks[-1 - ROUNDS + WARM_UP])
    return tuple(taken / (n * (ROUNDS - WARM_UP)))


def push_and_pull(
    grid: Grid, model: ArrayRecord, n: int, mark: Callable[[], None]
) -> None:
    """Send the same model again and again, and look at no reply."""

    def send(nodes: list[int]) -> dict[str, int]:
        content = {"arrays": model, "config": ConfigRecord({"server-round": 1})}
        messages = [Message(RecordDict(content), node, "train") for node in nodes]
        return dict(zip(grid.push_messages(messages), nodes, strict=True))

    busy, arrived = send(list(grid.get_node_ids())), 0
    while arrived < n * ROUNDS:
        nodes = []
        for reply in grid.pull_messages(list(busy)):
            nodes.append(busy.pop(reply.metadata.reply_to_message_id))
            arrived += 1
            if arrived % n == 0:
                mark()
        if nodes:
            busy |= send(nodes)
        else:
            time.sleep(0.02)


def measure(n: int, width: int, turns: int) -> None:
    """Run it all in one simulation; print medians, and the range of the rates."""
    with TemporaryDirectory() as folder:
        timed = Path(shutil.copytree(APP, Path(folder) / "app"))
        shutil.copy(__file__, timed / "asyncapp" / "timed.py")
        project = (timed / "pyproject.toml").read_text()
        project = project.replace("asyncapp.server:app", "asyncapp.timed:app")
        project = project.replace("width = 12", f"width = {width}\nturns = {turns}")
        (timed / "pyproject.toml").write_text(project)
        output = Path(folder) / "found.json"
        config = {"num-nodes": n, "output": str(output)}
        with Ray(timed) as ray:
            for _ in ray.run(config, n, Path(folder) / "log.txt"):
                pass
        found = json.loads(output.read_text())
    for loop in LOOPS:
        rates = [1 / wall for name, wall, _ in found if name == loop]
        cpu = statistics.median(cpu for name, _, cpu in found if name == loop)
        print(
            f"n = {n}, d = {width:.0e}, {loop}: {statistics.median(rates):.0f} arrivals"
            f" a second ({min(rates):.0f} to {max(rates):.0f}), "
            f"{1e3 * cpu:.2f} ms of the server's CPU each"
        )


if __name__ == "__main__":
    measure(int(sys.argv[1]), int(float(sys.argv[2])), int(sys.argv[3]))
