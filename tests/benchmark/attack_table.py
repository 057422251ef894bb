"""What each attack takes from each rule, on digits: a table of lost accuracy.

    python -m tests.benchmark.attack_table --output runs/attacks --seeds 5

trains a network with one hidden layer on scikit-learn's digits: 17 clients with i.i.d.
partitions, five local steps of SGD, updates averaged by the rule. The attacks and the
rules are the objects of the library. Every finished run is a line of `runs.jsonl`; a
second call with the same folder skips it. `--minutes` stops after that time.

Flower is left out, so that a run takes seconds: messages, sampling and weights have
their own tests.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import Knowledge, iter_attacks, parse_attack
from flwr_ctma.attacks.backdoor import Poisoning
from flwr_ctma.attacks.knowledge import Memory
from flwr_ctma.attacks.update import UpdateAttack

N, HIDDEN, CLASSES, PIXELS = 17, 32, 10, 64
RULES = ["mean", "cwmed", "gm", "ctma(gm)", "nnm(gm)", "nnm(cwmed)", "caf"]
MALICIOUS = [3, 5, 8]
ATTACKS = [
    *("none", "signflip", "semanticflip(source=3, target=8)"),
    *("ipm(epsilon=0.5)", "alie", "mirror(alie)", "mimic", "minmax", "fang"),
    *("jitter(alie)", "drift(ipm(epsilon=1.0))", "poisonedfl(period=5)"),
    *("rop", "sparse", "scm(evaluations=9)", "pga(evaluations=9)"),
    *("optimalipm(evaluations=9)", "optimalalie(evaluations=9)"),
    *("camouflage(ipm(epsilon=9.0))", "frame"),
    "adaptive(evaluations=7, steps=2, objective=descent)",
    "trimevasion(evaluations=7, steps=2, objective=descent)",
    "filterevasion(evaluations=7, steps=2, objective=descent)",
]

Array = NDArray[Any]


class Digits:
    """The data, its partitions, and a network as one vector of parameters."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        images, labels = load_digits(return_X_y=True)
        order = rng.permutation(len(images))
        images, labels = images[order] / 16, labels[order]
        self.test = images[:360], labels[:360]
        self.parts = np.array_split(np.arange(360, len(images)), N)
        self.images, self.labels = images, labels
        self.start = np.concatenate(
            [
                rng.normal(scale=0.2, size=PIXELS * HIDDEN),
                np.zeros(HIDDEN),
                rng.normal(scale=0.2, size=HIDDEN * CLASSES),
                np.zeros(CLASSES),
            ]
        )

    def layers(self, row: Array) -> list[Array]:
        ends = np.cumsum([PIXELS * HIDDEN, HIDDEN, HIDDEN * CLASSES])
        a, b, c, d = np.split(row, ends)
        return [a.reshape(PIXELS, HIDDEN), b, c.reshape(HIDDEN, CLASSES), d]

    def gradient(self, row: Array, x: Array, y: Array) -> Array:
        a, b, c, d = self.layers(row)
        hidden = np.maximum(x @ a + b, 0)
        scores = hidden @ c + d
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        back = (p @ c.T) * (hidden > 0)
        parts = [x.T @ back, back.sum(axis=0), hidden.T @ p, p.sum(axis=0)]
        return np.concatenate([part.ravel() for part in parts])

    def accuracy(self, row: Array) -> float:
        a, b, c, d = self.layers(row)
        x, y = self.test
        predicted = (np.maximum(x @ a + b, 0) @ c + d).argmax(axis=1)
        return float((predicted == y).mean()) if np.isfinite(row).all() else 0.1


def run(rule: str, attack_text: str, f: int, seed: int, rounds: int = 30) -> float:
    """Return the mean accuracy of the last five rounds."""
    digits, aggregator = Digits(seed), parse_aggregator(rule)
    attack, memory = parse_attack(attack_text), dict[str, Any]()
    kept: Memory = memory
    told = 0 if rule == "mean" else f
    row, history = digits.start, []
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, rounds + 1):
            updates = [
                train(digits, row, i, [seed, t, i], attack if i < f else None)
                for i in range(N)
            ]
            own, honest = np.array(updates[:f]), np.array(updates[f:])
            rng = np.random.default_rng([seed, t])
            aimed = attack.at(t, rng).against(aggregator, told)
            known = Knowledge(honest, own, rng, None, t, row, kept)  # type: ignore
            rows = np.vstack([aimed.collude(known), honest])
            row = row + aggregator(np.clip(rows, -1e6, 1e6), f=told)
            history.append(digits.accuracy(row))
    return float(np.mean(history[-5:]))


def train(
    digits: Digits,
    row: Array,
    client: int,
    seed: list[int],
    attack: Any,
    steps: int = 5,
) -> Array:
    """Return the update of a client, whose attack may be on data or on its update."""
    rng = np.random.default_rng(seed)
    members = digits.parts[client]
    x, y = digits.images[members], digits.labels[members]
    if isinstance(attack, Poisoning):
        x, y = attack.poison(x, y, rng)
    local = row
    for _ in range(steps):
        batch = rng.choice(len(x), 32, replace=False)
        local = local - 0.3 * digits.gradient(local, x[batch], y[batch])
    update: Array = local - row
    return attack.corrupt(update, rng) if isinstance(attack, UpdateAttack) else update


def wanted(seeds: int) -> Iterator[tuple[str, str, int, int]]:
    """Return all runs, seed by seed, so that a stopped table is whole for some seeds."""
    for seed, attack in itertools.product(range(1, seeds + 1), ATTACKS):
        for f, rule in itertools.product(MALICIOUS, RULES):
            yield rule, attack, f, seed


def report(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of lost points: attacks by rules, for each f."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for line in lines:
        key = line["rule"], line["attack"], line["f"]
        found.setdefault(key, []).append(100 * line["accuracy"])
    text = []
    for f in MALICIOUS:
        text += ["", f"{f} of {N}: points lost to the run without attack", ""]
        text += [f"| attack | {' | '.join(RULES)} |", "|---|" + "---|" * len(RULES)]
        for attack in ATTACKS:
            cells = []
            for rule in RULES:
                values = found.get((rule, attack, f), [])
                clean = found.get((rule, "none", f), [])[: len(values)]
                if not values or len(clean) < len(values):
                    cells.append("–")
                elif attack == "none":
                    cells.append(f"({np.mean(values):.1f})")
                else:
                    lost = np.array(clean) - values
                    half = (lost.max() - lost.min()) / 2
                    spread = f" ±{half:.0f}" if len(lost) > 1 else ""
                    cells.append(f"{lost.mean():.1f}{spread}")
            name = parse_attack(attack)
            short = next(iter_attacks(name))
            text.append(f"| `{str(short)}` | {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/attacks"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "runs.jsonl"
    lines = []
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    done = {(o["rule"], o["attack"], o["f"], o["seed"]) for o in lines}
    end = time.monotonic() + 60 * options.minutes
    with threadpool_limits(1), path.open("a") as file:
        for rule, attack, f, seed in wanted(options.seeds):
            if (rule, attack, f, seed) in done:
                continue
            if time.monotonic() > end:
                break
            began = time.monotonic()
            accuracy = run(rule, attack, f, seed)
            line = {"rule": rule, "attack": attack, "f": f, "seed": seed}
            line |= {"accuracy": accuracy, "seconds": time.monotonic() - began}
            file.write(json.dumps(line) + "\n")
            file.flush()
            lines.append(line)
    print(report(lines))
    seconds = sum(line["seconds"] for line in lines)
    print(f"\n{len(lines)} runs, {seconds / 60:.1f} minutes of one core")


if __name__ == "__main__":
    main()
