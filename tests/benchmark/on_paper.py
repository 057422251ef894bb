"""Estimate the time and memory of rounds that are too large to measure.

    python -m tests.benchmark.on_paper docs/figures/scale-on-paper.png

The rates are fitted to measurements of `scale.py stages` on two cores, and the model is
checked against each of them. The machines and their links are assumptions.
"""

import sys
from dataclasses import dataclass
from itertools import product

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Machine:
    """The rates of a machine, of all its cores together."""

    flops: float = 2.2e11  # products of the Gram matrix a second
    memory_rate: float = 1.7e10  # bytes that a weighted sum reads a second
    inspect_rate: float = 2.5e10  # bytes a second, one core
    each: float = 2e-5  # seconds to inspect a reply, however small
    find: float = 5e-6  # seconds to find where its row is
    write_rate: float = 1.6e9  # bytes of the model a second
    rule: float = 4e-8  # seconds for a pair of clients
    link: float = float("inf")  # bytes a second
    memory: float = float("inf")

    def inspect(self, n: float, d: float) -> float:
        return self.each * n + BYTES * n * d / self.inspect_rate

    def gram(self, n: float, d: float, pairs: float | None = None) -> float:
        return BYTES * n * d / self.memory_rate + (pairs or n * n) * d / self.flops

    def combine(self, n: float, d: float) -> float:
        return self.find * n + BYTES * n * d / self.memory_rate

    def write(self, n: float, d: float) -> float:
        return BYTES * d / self.write_rate

    def moved(self, bytes_: float) -> float:
        return bytes_ / self.link


HERE = Machine()
# 32 cores do 16 times the arithmetic of two. Memory bandwidth does not grow with the
# cores: 100 GB/s. The link has 25 Gbit/s, the memory 256 GB.
SERVER = Machine(flops=16 * 2.2e11, memory_rate=1e11, link=25e9 / 8, memory=256e9)

MEASURED = {  # milliseconds: python -m tests.benchmark.scale stages n d
    (17, 1e6): {"inspect": 3.1, "gram": 7.6, "combine": 5.6, "write": 0.7},
    (17, 1e7): {"inspect": 25.5, "gram": 51.0, "combine": 49.5, "write": 25.3},
    (100, 1e6): {"inspect": 17.7, "gram": 54.9, "combine": 22.7, "write": 3.0},
    (1000, 1e5): {"inspect": 36.3, "gram": 437.8, "combine": 33.1, "write": 0.3},
    (2000, 1e4): {"inspect": 41.5, "gram": 466.7, "combine": 13.9, "write": 0.2},
}
# `scale.py disk 80 1e8`: seconds from the replies to the model, which reads the rows
# three times, and the rate at which the disk read a file of 2 GB.
ON_DISK, DISK_RATE = (80, 1e8, 113.0), 1.0e9
GROUP = 100
CLIENTS, PARAMETERS = [1e3, 1e4, 1e5, 1e6], [1e6, 1e7, 1e8, 1e9, 1e10, 1e11]
MACHINES = [1, 100, 10_000]


def stages(n: float, d: float, machines: int, group: float = float("inf")) -> dict:
    """Return the seconds of each stage of a round, by name.

    As in Flower, one server process receives all replies. It distributes the columns to
    the machines. Inner products are taken between clients of the same group.
    """
    server, rows, pairs = SERVER, BYTES * n * d, n * min(n, group)
    alone = machines == 1
    return {
        "send": server.moved(rows),
        "receive": server.moved(rows),
        "inspect": server.inspect(n, d),
        "spread": 0.0 if alone else server.moved(rows),
        "gram": server.gram(n, d / machines, pairs),
        "collect": 0.0 if alone else server.moved(machines * 8 * pairs),
        "rule": server.rule * pairs,
        "combine": server.combine(n, d / machines),
        "write": server.write(n, d) + (0.0 if alone else server.moved(BYTES * d)),
    }


def memory(n: float, d: float, machines: int) -> dict:
    """Return the bytes that the server and each worker hold at once."""
    rows, gram = BYTES * n * d, 8 * n * n
    return {"server": rows + gram + 4 * BYTES * d, "worker": rows / machines + gram}


def check() -> None:
    """Print measured over modelled seconds; exit if the ratio exceeds three."""
    print("n, d: measured / model")
    for (n, d), found in MEASURED.items():
        ratios = {
            stage: 1e-3 * ms / getattr(HERE, stage)(n, d) for stage, ms in found.items()
        }
        line = ", ".join(f"{stage} {ratio:.2f}" for stage, ratio in ratios.items())
        print(f"{n}, {d:.0e}: {line}")
        bad = [s for s, r in ratios.items() if not 1 / 3 < r < 3 and found[s] > 10]
        if bad:
            sys.exit(f"The model does not hold for {bad} at n = {n}, d = {d:.0e}")
    n, d, seconds = ON_DISK
    model = HERE.inspect(n, d) + HERE.gram(n, d) + HERE.combine(n, d)
    model += HERE.write(n, d) + 3 * BYTES * n * d / DISK_RATE
    print(f"{n}, {d:.0e}, on disk: {seconds / model:.2f}")


def table() -> None:
    """Print seconds, the slowest stage, and what exceeds the memory."""
    for machines in MACHINES:
        print(f"\n{machines} machine(s)\n")
        print("| n | d | rows | Gram matrices | seconds | slowest | server | worker |")
        print("|---|---|---|---|---|---|---|---|")
        for n, d in product(CLIENTS, PARAMETERS):
            times, held = stages(n, d, machines), memory(n, d, machines)
            slowest = max(times, key=times.__getitem__)
            flags = [
                f"{human(held[who])}B{' (!)' * (held[who] > SERVER.memory)}"
                for who in ("server", "worker")
            ]
            cells = [
                f"{n:.0e}",
                f"{d:.0e}",
                f"{human(BYTES * n * d)}B",
                f"{human(machines * 8 * n * n)}B",
                f"{human(sum(times.values()))}",
                slowest,
                *flags,
            ]
            print(f"| {' | '.join(cells)} |")


def groups() -> None:
    """Print seconds and the slowest stage, of flat and of hierarchical rules."""
    print(f"\n| machines | n | d | flat | slowest | groups of {GROUP} | slowest |")
    print("|---|---|---|---|---|---|---|")
    for machines, n in product(MACHINES, CLIENTS):
        cells = [f"{machines}", f"{n:.0e}", "1e+09"]
        for group in (float("inf"), GROUP):
            times = stages(n, 1e9, machines, group)
            slowest = max(times, key=times.__getitem__)
            cells += [f"{human(sum(times.values()))}s", slowest]
        print(f"| {' | '.join(cells)} |")


def human(value: float) -> str:
    """Return the value with three digits and an SI prefix."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def figure(path: str) -> None:
    """Draw the seconds of a round and its slowest stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    fig, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    for ax, machines in zip(axes, MACHINES, strict=True):
        cells = [[stages(n, d, machines) for n in CLIENTS] for d in PARAMETERS]
        seconds = np.array([[sum(cell.values()) for cell in row] for row in cells])
        image = ax.imshow(
            np.log10(seconds), origin="lower", aspect="auto", vmin=-1, vmax=9
        )
        for (j, i), total in np.ndenumerate(seconds):
            cell, held = cells[j][i], memory(CLIENTS[i], PARAMETERS[j], machines)
            text = f"{max(cell, key=cell.__getitem__)}\n{human(total)}s"
            if max(held.values()) > SERVER.memory:
                text += "\nout of memory"
            colour = "white" if total < 1e5 else "black"
            ax.text(i, j, text, ha="center", va="center", fontsize=7, color=colour)
        ax.set_xticks(range(len(CLIENTS)), [f"{n:.0e}" for n in CLIENTS])
        ax.set_yticks(range(len(PARAMETERS)), [f"{d:.0e}" for d in PARAMETERS])
        ax.set_xlabel("clients")
        ax.set_title(f"{machines} machine{'s' * (machines > 1)}", fontsize=10)
    axes[0].set_ylabel("parameters")
    fig.colorbar(image, label="log10 of seconds a round")
    fig.savefig(path, dpi=80)


if __name__ == "__main__":
    check()
    table()
    groups()
    if len(sys.argv) > 1:
        figure(sys.argv[1])
