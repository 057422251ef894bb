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
from flwr_ctma.attacks import Knowledge, parse_attack
from flwr_ctma.attacks.backdoor import Poisoning
from flwr_ctma.attacks.update import UpdateAttack

N, HIDDEN, CLASSES, PIXELS = 17, 32, 10, 64
RULES = ["mean", "cwmed", "gm", "ctma(gm)", "nnm(gm)", "nnm(cwmed)", "caf"]
MALICIOUS = [3, 5, 8]
ATTACKS = [
    *("none", "ipm(epsilon=0.5)", "alie", "poisonedfl(period=5)", "rop"),
    *("mirror(alie)", "sparse", "minmax", "jitter(alie)", "fang", "mimic"),
    *("drift(ipm(epsilon=1.0), rounds=15)", "camouflage(ipm(epsilon=9.0))", "frame"),
    *("signflip", "semanticflip(source=3, target=8)"),
    # Those that search cost a call of the rule for each evaluation.
    *("optimalipm(evaluations=9)", "optimalalie(evaluations=9)"),
    *("pga(evaluations=9)", "scm(evaluations=9)"),
    "adaptive(evaluations=5, steps=2, objective=descent)",
    "filterevasion(evaluations=5, steps=2, objective=descent)",
    "trimevasion(evaluations=5, steps=2, objective=descent)",
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

    def layers(self, rows: Array) -> list[Array]:
        ends = np.cumsum([PIXELS * HIDDEN, HIDDEN, HIDDEN * CLASSES])
        a, b, c, d = np.split(rows, ends, axis=-1)
        before = rows.shape[:-1]
        return [
            a.reshape(*before, PIXELS, HIDDEN),
            b[..., None, :],
            c.reshape(*before, HIDDEN, CLASSES),
            d[..., None, :],
        ]

    def gradients(self, rows: Array, x: Array, y: Array) -> Array:
        """Return the gradient of each client's network on its batch."""
        a, b, c, d = self.layers(rows)
        hidden = np.maximum(x @ a + b, 0)
        scores = hidden @ c + d
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        p = (p - np.eye(CLASSES)[y]) / y.shape[-1]
        back = (p @ c.swapaxes(1, 2)) * (hidden > 0)
        parts = [
            *(x.swapaxes(1, 2) @ back, back.sum(axis=1)),
            *(hidden.swapaxes(1, 2) @ p, p.sum(axis=1)),
        ]
        return np.hstack([part.reshape(len(rows), -1) for part in parts])

    def accuracy(self, row: Array) -> float:
        a, b, c, d = self.layers(row)
        x, y = self.test
        predicted = (np.maximum(x @ a + b, 0) @ c + d).argmax(axis=1)
        return float((predicted == y).mean()) if np.isfinite(row).all() else 0.1


def run(rule: str, attack_text: str, f: int, seed: int, rounds: int = 25) -> float:
    """Return the mean accuracy of the last five rounds."""
    digits, aggregator = Digits(seed), parse_aggregator(rule)
    attack, memory = parse_attack(attack_text), dict[str, Any]()
    told = 0 if rule == "mean" else f
    data = [
        poisoned(digits, i, attack if i < f else None, np.random.default_rng([seed, i]))
        for i in range(N)
    ]
    row, history = digits.start, []
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, rounds + 1):
            rng = np.random.default_rng([seed, t])
            updates = local_steps(digits, row, data, rng)
            if isinstance(attack, UpdateAttack):
                updates[:f] = [attack.corrupt(update, rng) for update in updates[:f]]
            aimed = attack.at(t, rng).against(aggregator, told)
            known = Knowledge(
                updates[f:],
                updates[:f],
                rng,
                server_round=t,
                model=row,
                memory=memory,
            )
            rows = np.vstack([aimed.collude(known), updates[f:]])
            row = row + aggregator(np.clip(rows, -1e6, 1e6), f=told)
            history.append(digits.accuracy(row))
    return float(np.mean(history[-5:]))


def poisoned(
    digits: Digits, client: int, attack: Any, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return the data of a client."""
    members = digits.parts[client]
    x, y = digits.images[members], digits.labels[members]
    return attack.poison(x, y, rng) if isinstance(attack, Poisoning) else (x, y)


def local_steps(
    digits: Digits,
    row: Array,
    data: list[tuple[Array, Array]],
    rng: np.random.Generator,
    steps: int = 5,
    batch: int = 32,
) -> Array:
    """Return the updates of all clients, one row each."""
    rows = np.tile(row, (N, 1))
    for _ in range(steps):
        picks = [rng.choice(len(x), batch, replace=False) for x, _ in data]
        x = np.stack([x[pick] for pick, (x, _) in zip(picks, data, strict=True)])
        y = np.stack([y[pick] for pick, (_, y) in zip(picks, data, strict=True)])
        rows = rows - 0.3 * digits.gradients(rows, x, y)
    return rows - row


def wanted(seeds: int) -> Iterator[tuple[str, str, int, int]]:
    """Return all runs, seed by seed: a stopped table is whole for the first seeds."""
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
            text.append(f"| `{attack}` | {' | '.join(cells)} |")
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
