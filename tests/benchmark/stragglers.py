"""Time to a given loss in Ray's simulation, where one of five clients is slow.

python -m tests.benchmark.stragglers 0.5 0.02

Clients sleep for so many seconds, and one of them ten times as long; another one lies.
In rounds that wait for all, in rounds that wait for the last one only as long as
`GracePeriod` says, and at every arrival. This file is the ServerApp as well.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from flwr_ctma.experiments.processes import last_run, spell_config, superlink, watch
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    GracePeriod,
    RobustStrategy,
)

APP = Path(__file__).parents[1] / "helpers" / "apps" / "asyncapp"
NODES, ROUNDS = 5, 25

app = ServerApp()


def strategies() -> dict[str, Strategy]:
    """Give the same step along the same rule, taken at different moments."""

    def step() -> AnyTimeSGD:
        settings = {"fraction_evaluate": 0.0, "min_available_nodes": NODES}
        return AnyTimeSGD(0.1, "fixed(gamma=1)", **settings)

    return {
        "rounds of all": RobustStrategy(
            step(), num_malicious_nodes=1, grace_period=None
        ),
        "patient rounds": RobustStrategy(
            step(), num_malicious_nodes=1, grace_period=GracePeriod(at_least=0.1)
        ),
        "every arrival": AsyncRobustStrategy(
            step(), num_malicious_nodes=1, min_available_nodes=NODES
        ),
    }


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Note after every round how long it all took, and how good the model is."""
    found: dict[str, list[tuple[float, float]]] = {}
    while len(list(grid.get_node_ids())) < NODES:
        time.sleep(0.1)
    for name, strategy in strategies().items():
        began, marks = time.perf_counter(), found.setdefault(name, [])

        def mark(
            number: int, arrays: ArrayRecord, began=began, marks=marks
        ) -> MetricRecord:
            x = arrays["x"].numpy()
            loss = float(np.mean((x - np.linspace(-1, 1, len(x))) ** 2))
            marks.append((time.perf_counter() - began, loss))
            return MetricRecord({"loss": loss})

        zero = ArrayRecord({"x": Array(np.zeros(int(context.run_config["width"])))})
        strategy.start(grid, zero, ROUNDS, evaluate_fn=mark)
        time.sleep(12 * float(context.run_config["seconds"]))  # all have come home
    Path(str(context.run_config["output"])).write_text(json.dumps(found))


def measure(seconds: float, loss: float) -> None:
    """Run all three in one simulation in which nobody waits for a core to sleep on."""
    with TemporaryDirectory() as folder, superlink("--simulation") as (env, _):
        timed = Path(shutil.copytree(APP, Path(folder) / "app"))
        shutil.copy(__file__, timed / "asyncapp" / "timed.py")
        project = (timed / "pyproject.toml").read_text()
        project = project.replace("asyncapp.server:app", "asyncapp.timed:app")
        (timed / "pyproject.toml").write_text(project)
        output, log = Path(folder) / "found.json", Path(folder) / "log.txt"
        config = {"seconds": seconds, "slow": NODES - 1, "output": str(output)}
        federation = {"num-supernodes": NODES, "client-resources-num-cpus": 1}
        federation |= {"init-args-num-cpus": NODES}
        command = ["flwr", "run", str(timed), "--stream"]
        command += ["--run-config", spell_config(config)]
        command += ["--federation-config", spell_config(federation)]
        for _ in watch(command, log, env):
            pass
        print(last_run(env)[0])
        found = json.loads(output.read_text())
    for name, marks in found.items():
        after = next((f"{at:.1f} s" for at, now in marks if now <= loss), "not reached")
        rounds = next((i for i, (_, now) in enumerate(marks) if now <= loss), None)
        print(
            f"{name}: loss {loss} after {after}, {rounds} rounds; "
            f"{marks[-1][0] / ROUNDS:.2f} s a round"
        )


if __name__ == "__main__":
    measure(float(sys.argv[1]), float(sys.argv[2]))
