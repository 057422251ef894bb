"""CPU seconds to start a run, and of each further run of a sweep.

    taskset -c 0 python -m tests.benchmark.starts

A run is one round of the app's defaults, `--batched`; a sweep runs it with one seed and
with eleven, in one process. The imports that no run can do without are beside it. Each
number is the median of three turns; the processes that a command starts count.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

APP = Path(__file__).parents[2]
TURNS, ADDED = 3, 10


def main() -> None:
    """Print a line for each command."""
    program = [sys.executable, "-m", "flwr_ctma"]
    run = [*program, "simulate", str(APP), "--batched", "--quiet"]
    found: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for name, command in {
            "import torch": [sys.executable, "-c", "import torch"],
            "import flwr.serverapp": [sys.executable, "-c", "import flwr.serverapp"],
            "import numba": [sys.executable, "-c", "import numba"],
            "flwr-ctma --version": [*program, "--version"],
            "simulate, one round": [*run, "-c", "num-server-rounds=1"],
        }.items():
            found.setdefault(name, []).append(cpu_seconds(command))
        one, many = (sweep(program, count) for count in (1, 1 + ADDED))
        found.setdefault("sweep of one run", []).append(one)
        found.setdefault("each added run", []).append((many - one) / ADDED)
    for name, seconds in found.items():
        low, high = min(seconds), max(seconds)
        print(f"{name}: {statistics.median(seconds):.2f} s ({low:.2f} to {high:.2f})")


def sweep(program: list[str], seeds: int) -> float:
    """Return the CPU seconds of a sweep over so many seeds, all in one process."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.toml"
        plan.write_text(
            "run-config = { num-server-rounds = 1 }\n"
            f"axes = {{ seed = {list(range(1, seeds + 1))} }}\n",
            encoding="utf-8",
        )
        options = ["--workers", "1", "--batched", "--quiet", "--output", folder]
        return cpu_seconds([*program, "sweep", str(plan), str(APP), *options])


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds of a command and of the processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
