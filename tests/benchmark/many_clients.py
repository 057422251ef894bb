"""Rules for many clients: what they cost, and how far off attacks push them.

python -m tests.benchmark.many_clients docs/figures/many-clients.png

Of n clients a fifth are malicious. Honest updates are normal, with d = 1000 coordinates
and a mean as long as a third of what one update is away from it.
"""

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.attacks import ALIE, IPM
from flwr_ctma.sampling import min_sample_size, tolerated

D, SHARE, FAILURE = 1000, 0.2, 1e-6
SIZES = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
LARGEST_FLAT = 10_000  # beyond, inner products alone are 7 GB

Rows = np.ndarray
Call = Callable[[Rows], Rows]
Found = dict[str, dict[int, tuple[float, ...]]]


def flat(spelled: str, n: int) -> Call:
    """A rule that sees all rows."""
    rule, b = parse_aggregator(spelled), int(SHARE * n)
    return lambda x: rule(x, f=b)


def sampled(times: int, n: int) -> Call:
    """ctma(gm) of as many rows as hold an honest majority, or a multiple of that."""
    b, rule = int(SHARE * n), parse_aggregator("ctma(gm)")
    least = min_sample_size(n, b, confidence=1 - FAILURE)
    size = min(n, times * least)
    f = tolerated(n, b, sampled=size, confidence=1 - FAILURE)
    chosen = np.random.default_rng(n).choice(n, size, replace=False)
    return lambda x: rule(x[np.sort(chosen)], f=f)


WAYS: dict[str, Callable[[int], Call]] = {
    "mean": lambda n: flat("mean", n),
    "ctma(gm)": lambda n: flat("ctma(gm)", n),
    "hierarchical(ctma(gm))": lambda n: flat("hierarchical(ctma(gm), seed=1)", n),
    "ctma(hierarchical(ctma(gm)))": lambda n: flat(
        "ctma(hierarchical(ctma(gm), seed=1))", n
    ),
    "ctma(gm), smallest sample": lambda n: sampled(1, n),
    "ctma(gm), 10 × that": lambda n: sampled(10, n),
}


def attacks(honest: Rows, b: int) -> Iterator[tuple[str, Rows]]:
    """What b clients send who know what all others do."""
    rng = np.random.default_rng(0)
    middle = honest.mean(axis=0)
    aside = rng.standard_normal(D, dtype=np.float32)
    aside *= np.sqrt(D) / np.linalg.norm(aside)
    yield "alie", ALIE()(honest, b, rng)
    yield "ipm", IPM(0.5)(honest, b, rng)
    yield "aside", np.tile(middle + aside, (b, 1))  # as far off as honest rows are
    yield "far", np.tile(middle + 1000 * aside, (b, 1))


def measure(name: str, n: int) -> tuple[float, ...] | None:
    """CPU seconds, memory / rows, error under the near attacks and the far one.

    None where it would not fit.
    """
    b = int(SHARE * n)
    if name == "ctma(gm)" and n > LARGEST_FLAT:
        return None
    rng = np.random.default_rng(n)
    x = np.empty((n, D), np.float32)
    rng.standard_normal(dtype=np.float32, out=x)
    x += np.float32(1 / 3)
    honest = x[b:]
    middle = honest.mean(axis=0, dtype=np.float64)
    call, seconds, errors = WAYS[name](n), [], {}
    for attack, lies in attacks(honest, b):
        x[:b] = lies
        for _ in range(1 if n > 2000 else 5):
            start = time.process_time()
            found = call(x)
            seconds.append(time.process_time() - start)
        errors[attack] = float(np.linalg.norm(found - middle)) / np.sqrt(D)
    tracemalloc.start()
    call(x)
    memory = tracemalloc.get_traced_memory()[1] / x.nbytes
    tracemalloc.stop()
    far = errors.pop("far")
    return statistics.median(seconds), memory, max(errors.values()), far


def main(path: str) -> None:
    """Measure, print a table, and draw it."""
    found: Found = {}
    print("n, rule: CPU seconds, extra memory / rows, error (near), error (far)")
    for n in SIZES:
        for name in WAYS:
            point = measure(name, n)
            if point is not None:
                found.setdefault(name, {})[n] = point
                print(f"{n}, {name}: " + ", ".join(f"{v:.3g}" for v in point))
                sys.stdout.flush()
    draw(found, path)


def draw(found: Found, path: str) -> None:
    """Cost on the left, errors on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = ("#999999", "#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00")
    dashes = (":", "-", "-", "--", "-.", "--")
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, colour, dash in zip(WAYS, colours, dashes, strict=True):
        look = {"color": colour, "linestyle": dash, "marker": "o", "markersize": 3}
        sizes = list(found[name])
        seconds, _, near, far = zip(*found[name].values(), strict=True)
        axes[0].plot(sizes, seconds, **look, label=name)
        axes[1].plot(sizes, near, **look)
        if name != "mean":  # far rows move it as far as they like
            axes[2].plot(sizes, far, **look)
    titles = ("CPU seconds", "Error, worst of the near attacks", "Error, far attack")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(xscale="log", yscale="log", xlabel="Clients")
        ax.set_title(title, loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].set(yscale="linear", ylim=(0, 0.8))
    axes[2].set_ylim(1e-3, 1)  # others find the honest mean to rounding
    figure.legend(loc="outside right center")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(sys.argv[1])
