"""Worst seconds of each rule, on the rows known to slow it most.

    python -m tests.benchmark.worst_case                 all rules, up to 1000 rows
    python -m tests.benchmark.worst_case --only caf dnc

The rows have at most 2000 coordinates, so the passes over them take little. Each rule
meets every kind of rows once, at each n and the largest f for which it is defined. The
largest time is printed, with its rows: seconds of the CPU, which other processes do not
stretch. A search without a bound shows as minutes.
"""

import argparse
import time

import numpy as np

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import RULES, iter_rules

SIZES = ((17, 8), (20, 9), (60, 25), (1000, 300), (1000, 490))
META = (
    *("ctma", "nnm", "arc", "bucketing", "distinct", "normbound", "zeno"),
    "layerwise",
)
BASE = "gm"


def gaussian(rng, n, f):
    """Rows without structure."""
    return rng.standard_normal((n, min(2 * n, 1000)))


def far_orthogonal(rng, n, f, spread):
    """f rows far away, each in a direction of its own: filters drop one at a time."""
    x = 0.1 * rng.standard_normal((n, max(f, 2)))
    x[np.arange(f), np.arange(f)] += 50 + spread * np.arange(f)
    return x[rng.permutation(n)]


def simplex(rng, n, f):
    """All distances nearly equal: bounds of searches do not tell subsets apart."""
    return np.eye(n) + 1e-6 * rng.standard_normal((n, n))


def matching(rng, n, f):
    """Pairs of rows far apart, 2 (f + 1) of them: covers of f rows just fail."""
    x = 1e-3 * rng.standard_normal((n, 2 * n))
    for k in range(0, min(n - 2, 3 * f), 3):
        x[k : k + 3] += 10 * np.eye(3, 2 * n, k)
    return x


def near_a_row(rng, n, f):
    """The geometric median is nearly a row: Weiszfeld's steps are shortest there."""
    x = rng.standard_normal((n, 20))
    x[0] = 0
    x[1:] /= np.linalg.norm(x[1:], axis=1, keepdims=True)
    pull = x[1:].sum(axis=0)
    x[1] -= pull * (1 - 1.001 / max(np.linalg.norm(pull), 1e-9))
    return x


def near_a_line(rng, n, f):
    """Two halves far apart, nearly on a line: the sum of distances is flat."""
    x = 1e-4 * rng.standard_normal((n, 10))
    x[:, 0] += np.where(np.arange(n) < n / 2, -1.0, 1.0)
    return x


KINDS = {
    "gaussian": gaussian,
    "orthogonal, near ties": lambda rng, n, f: far_orthogonal(rng, n, f, 1e-4),
    "orthogonal, apart": lambda rng, n, f: far_orthogonal(rng, n, f, 1.0),
    "simplex": simplex,
    "triples": matching,
    "near a row": near_a_row,
    "near a line": near_a_line,
}


def worst(spec):
    """Return the largest seconds of a rule, and the rows that took them."""
    rule, found = parse_aggregator(spec), (0.0, "")
    referenced = any(part.needs_reference for part in iter_rules(rule))
    rule(np.eye(9) + 1.0, f=1, **({"reference": np.ones(9)} if referenced else {}))
    for n, f in SIZES:
        try:
            rule.check(n, f)
        except ValueError:
            f = (n - 3) // 4
            try:
                rule.check(n, f)
            except ValueError:
                continue
        for name, kind in KINDS.items():
            x = kind(np.random.default_rng(0), n, f)
            given = {"reference": x[0]} if referenced else {}
            start = time.process_time()
            rule(x, f=f, **given)
            took = time.process_time() - start
            found = max(found, (took, f"n = {n}, f = {f}, {name}"))
    return found


def main():
    """Print a line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", help="rules, as in a run-config")
    specs = parser.parse_args().only
    if not specs:
        alone = [name for name in RULES if not name.startswith("hierarchical")]
        specs = [f"{n}({BASE})" if n in META else n for n in alone if n != "clipping"]
    for spec in specs:
        took, rows = worst(spec)
        print(f"{spec:15} {took:7.2f} s   {rows}", flush=True)


if __name__ == "__main__":
    main()
