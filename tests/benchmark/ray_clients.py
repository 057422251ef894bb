"""Wall and CPU seconds of the app with its clients in Ray actors, and in one process.

    python -m tests.benchmark.ray_clients 1000 10    1000 clients, 10 sampled
    python -m tests.benchmark.ray_clients 300 300

Four rounds of the app's defaults, evaluated at the end, from the start of the command
to its end; a tenth of the clients are malicious if all are sampled, else none. CPU
seconds are those of all processes (Linux).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

APP = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


def main(clients: int, sampled: int) -> None:
    """Print a line for each way."""
    malicious = clients // 10 if sampled == clients else 0
    config = "num-server-rounds=4 evaluate-every=4 "
    config += f"num-malicious-nodes={malicious} fraction-train={sampled / clients}"
    for options in (["--ray"], []):
        command = [sys.executable, "-m", "flwr_ctma", "simulate", str(APP), "--quiet"]
        command += ["--num-nodes", str(clients), "-c", config, *options]
        wall, cpu = seconds(command)
        where = "Ray" if options else "one process"
        print(
            f"{clients} clients, {sampled} sampled, {where}: "
            f"{wall:.0f} s, {cpu:.0f} s of CPU",
            flush=True,
        )


def seconds(command: list[str]) -> tuple[float, float]:
    """Return the wall and CPU seconds of a command and of the processes it starts."""
    began, used = time.perf_counter(), {}
    process = subprocess.Popen(command)
    while process.poll() is None:
        used |= cpu_seconds(process.pid)
        time.sleep(0.3)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - began, sum(used.values())


def cpu_seconds(root: int) -> dict[tuple[int, str], float]:
    """Return the CPU seconds of a process and its descendants so far."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        stats[int(path.parent.name)] = fields
    found, new = {}, {root}
    while new:
        found |= {
            (pid, stats[pid][19]): (int(stats[pid][11]) + int(stats[pid][12])) / TICKS
            for pid in new & stats.keys()
        }
        new = {pid for pid, fields in stats.items() if int(fields[1]) in new}
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
