"""Time rules beside those of other libraries, in passes over the rows.

    python -m tests.benchmark.compare                     all rules, 17 rows of 1e6
    python -m tests.benchmark.compare --n 100 --f 20 --peers
    python -m tests.benchmark.compare --messages          from Flower's messages on
    python -m tests.benchmark.compare --cpu               seconds of the CPU
    python -m tests.benchmark.compare --scaling out.png   by n and by d

A pass is the weighted sum `w @ X` in float32: no rule that reads all rows is faster.
Every call is timed right after a pass, in an order that changes from round to round, so
that other work on the machine affects all calls alike. The table gives, in passes, the
fastest call over the fastest pass, and the 10th to the 90th percentile of the ratios of
neighbours. Limit: the readings of the rows that a rule needs, plus its
arithmetic at the peak of the cores, which a large matrix product measures. Memory: the
growth of a fresh process at its peak, result included, over the size of the rows.
With --cpu, times are those of the CPU, which other processes stretch little.
"""

import argparse
import logging
import multiprocessing
import random
import time
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import numpy as np

from flwr_ctma import parse_aggregator
from flwr_ctma.engine.kernels.network import network
from flwr_ctma.engine.threads import one_blas_thread
from tests.benchmark.peers import peers

GRAM = ("ctma(gm)", "nnm(ctma(gm))", "ctma(nnm(gm))", "krum", "multikrum", "nnm(gm)")
RANKS = ("cwmed", "ctma(cwmed)", "cwtm", "meamed")
OTHERS = (
    *("mean", "gm", "mda", "smea", "monna", "caf", "dnc", "cge", "cclip", "fltrust"),
    *("zeno(mean)", "sampleddnc", "signguard", "lasa"),
    *("nnm(cwmed)", "ctma(nnm(cwmed))", "bucketing(cwmed)", "arc(ctma(gm))", "bulyan"),
)
OURS = "flwr-ctma"
SLOW = 2.0  # seconds, after which a call is not repeated
CLOCK = time.perf_counter


def rows(n, d):
    return np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)


def ours(spec, f):
    rule = parse_aggregator(spec)
    if spec == "bulyan":
        return lambda x: rule(x, f=min(f, (len(x) - 3) // 4))
    if spec.startswith(("fltrust", "zeno")):
        return lambda x: rule(x, f=f, reference=x[0])
    return lambda x: rule(x, f=f)


def limit(spec, n, d, f, floor):
    """Return the least time of a rule in passes, or None if it is not computed here."""
    peak, pairs = peak_flops(), n * (n + 1) / 2
    if spec in (*GRAM, "gm"):  # multiply and add, for each pair of rows
        return 2 + 2 * pairs * d / peak / floor
    if spec not in RANKS:
        return None
    middle = {(n - 1) // 2, n // 2}
    ranks = {
        "cwtm": [float(f <= r < n - f) for r in range(n)],
        "meamed": list(map(float, range(1, n + 1))),
    }.get(spec, [float(r in middle) for r in range(n)])
    # A multiply-add counts as two operations at the peak; a minimum takes as long.
    steps = sum(c.keep_low + c.keep_high for c in network(tuple(ranks)))
    if spec == "meamed":
        steps += 4 * f
    readings = 1
    if spec == "ctma(cwmed)":
        readings, steps = 2, steps + 2 * n
    return readings + 2 * steps * d / peak / floor


@cache
def peak_flops():
    """Return the float32 operations a second of a large matrix product."""
    a = rows(512, 512)  # so short that some of the calls are not interrupted
    return 2 * 512**3 / min(seconds(lambda: a @ a) for _ in range(100))


def interleave(calls, floor, rounds, seed=0):
    """Time calls, each after the floor; return {name: [(seconds, floor's seconds)]}."""
    times = {name: [] for name in calls}
    order = random.Random(seed)
    for name, call in list(calls.items()):
        try:
            call()
        except Exception as error:
            print(f"{name} fails: {type(error).__name__}: {error}")
            del times[name]
    for _ in range(rounds):
        names = [n for n, t in times.items() if not t or t[-1][0] < SLOW]
        order.shuffle(names)
        for name in names:
            least = min(seconds(floor), seconds(floor))
            times[name].append((seconds(calls[name]), least))
    return times


def seconds(call):
    start = CLOCK()
    call()
    return CLOCK() - start


def summary(times):
    """Return the fastest time, its ratio to the floor, and the range of ratios."""
    floor = min(least for pairs in times.values() for _, least in pairs)
    return {
        name: (
            min(t for t, _ in pairs),
            min(t for t, _ in pairs) / floor,
            *np.percentile([t / least for t, least in pairs], [10, 90]),
        )
        for name, pairs in times.items()
    }


def growth(name, n, d, f):
    """Return the growth of a fresh process by a call, over the size of the rows."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grow, (name, n, d, f))


def _grow(name, n, d, f):
    call = ours(name[0], f) if name[1] == OURS else peers(f, report=id)[name]
    call(rows(n, 1000))
    x = rows(n, d)
    before = peak_kilobytes()
    call(x)
    return (peak_kilobytes() - before) * 1024 / x.nbytes


def peak_kilobytes():
    """Return the peak memory; `ru_maxrss` would include the parent's (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def table(args):
    x = rows(args.n, args.d)
    weights = np.full(args.n, 1 / args.n, np.float32)
    calls = {(spec, OURS): ours(spec, args.f) for spec in (*GRAM, *RANKS, *OTHERS)}
    calls |= peers(args.f) if args.peers else {}
    calls = {
        name: partial(call, x)
        for name, call in calls.items()
        if not args.only or name[0] in args.only
    }
    times = interleave(calls, lambda: weights @ x, args.rounds)
    print(f"\n{args.n} rows of {args.d:.0e}, f = {args.f}, {args.rounds} rounds")
    print(
        f"{'rule':18}{'library':15}{'ms':>10}{'passes':>9}{'(range)':>15}"
        f"{'limit':>7}{'memory':>8}"
    )
    found = summary(times)
    floor = min(least for pairs in times.values() for _, least in pairs)
    for (spec, library), (fastest, passes, low, high) in found.items():
        least = limit(spec, args.n, args.d, args.f, floor) if library == OURS else None
        memory = ""
        if args.memory:
            memory = f"{growth((spec, library), args.n, args.d, args.f):.2f}"
        print(
            f"{spec:18}{library:15}{fastest * 1e3:10.1f}{passes:9.1f}"
            f"{f'({low:.1f}–{high:.1f})':>15}"
            f"{'' if least is None else f'{least:.1f}':>7}{memory:>8}"
        )
    print(f"pass: {floor * 1e3:.2f} ms; peak: {peak_flops() / 1e9:.0f} GFLOP/s")


def messages(args):
    """Time Flower's strategies and RobustStrategy on the same replies."""
    from tests.benchmark.test_speed import FLOWER, round_of

    logging.getLogger("flwr").setLevel(logging.WARNING)
    weights, x = np.full(args.n, 1 / args.n, np.float32), rows(args.n, args.d)
    prepared = {name: round_of(name, x, args.f) for name in FLOWER}
    times = {name: [] for name in FLOWER}
    order = random.Random(0)
    for k in range(args.rounds + 1):
        names = [n for n, t in times.items() if not t or t[-1][0] < 5 * SLOW]
        order.shuffle(names)
        for name in names:
            strategy, replies = prepared[name]()
            least = min(seconds(lambda: weights @ x) for _ in range(3))
            taken = seconds(lambda: strategy.aggregate_train(1, replies))  # noqa: B023
            if k:
                times[name].append((taken, least))
    found = summary({name: pairs for name, pairs in times.items() if pairs})
    average = found["FedAvg"][0]
    print(
        f"\nFrom {args.n} messages of {args.d:.0e} numbers to the model, f = {args.f}"
    )
    print(f"{'strategy':18}{'ms':>10}{'passes':>9}{'of FedAvg':>11}")
    for name, (least, passes, *_) in found.items():
        print(f"{name:18}{least * 1e3:10.1f}{passes:9.1f}{least / average:11.2f}")


def scaling(args):
    """Plot the time of a few rules by n and by d, beside the floor."""
    import matplotlib.pyplot as plt

    specs = ("ctma(gm)", "ctma(cwmed)", "nnm(cwmed)", "krum", "cwtm", "mean")
    sweeps = [
        ("n", "clients n", [(n, 10**5) for n in (10, 17, 30, 50, 100, 200, 500, 1000)]),
        ("d", "coordinates d", [(17, 10**k) for k in range(4, args.largest + 1)]),
    ]
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", sharey=True
    )
    for axis, (name, label, sizes) in zip(axes, sweeps, strict=True):
        points = {}
        for n, d in sizes:
            x, weights = rows(n, d), np.full(n, 1 / n, np.float32)
            f = max(1, n // 5)
            calls = {spec: partial(ours(spec, f), x) for spec in specs}
            calls["w @ X"] = partial(np.dot, weights, x)
            found = summary(interleave(calls, calls["w @ X"], args.rounds))
            for spec, (least, passes, *_) in found.items():
                points.setdefault(spec, []).append((n if name == "n" else d, least))
                print(f"{n:5} {d:10} {spec:14}{least * 1e3:10.2f} ms{passes:8.1f}")
        for spec, line in points.items():
            style = {"color": "black", "ls": "--"} if spec == "w @ X" else {}
            axis.loglog(*zip(*line, strict=True), marker=".", label=spec, **style)
        axis.set(xlabel=label, title=f"{'d = 1e5' if name == 'n' else 'n = 17'}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[1].legend(loc="lower right")
    figure.savefig(args.scaling, dpi=150)
    print(f"Wrote {args.scaling}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=17)
    parser.add_argument("--d", type=lambda text: int(float(text)), default=10**6)
    parser.add_argument("--f", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", help="rules, as spelled in a run-config")
    parser.add_argument("--peers", action="store_true", help="other libraries too")
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    parser.add_argument("--messages", action="store_true", help="from messages on")
    parser.add_argument("--cpu", action="store_true", help="CPU time of all threads")
    parser.add_argument("--scaling", metavar="PNG", help="plot time by n and by d")
    parser.add_argument("--largest", type=int, default=7, help="log10 of the largest d")
    args = parser.parse_args()
    if args.cpu:
        global CLOCK
        CLOCK = time.process_time
    if args.scaling:
        scaling(args)
    elif args.messages:
        messages(args)
    else:
        with one_blas_thread() if args.cpu else nullcontext():
            table(args)


if __name__ == "__main__":
    main()
