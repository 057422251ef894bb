"""What each part of the defence by memory contributes, on digits.

    python -m tests.benchmark.memory_ablation --output runs/ablation

The setting is that of `tests.benchmark.attack_table`, with batches of 8 and 60 rounds.
The full defence is `distinct(RULE)` that weighs 17 clients by their past, remembered
with β = 0.99, and their present side by side, and applies its weights to the clipped
present updates. Each variant leaves one part out: the memory; the present beside the
past; the clipping; the fence against twins. The last attack knows the defence: in each
round it searches for the strength of its lie that sets the step back most.
"""

import argparse
import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import Aggregator, Budget
from flwr_ctma.attacks import Knowledge, parse_attack
from flwr_ctma.attacks.update import UpdateAttack
from flwr_ctma.engine.updates import Updates
from flwr_ctma.strategy.round.memory import NodeMemory, clip_factors, weigh_nodes
from tests.benchmark.attack_table import Digits, N, local_steps

RULES = ["nnm(gm)", "caf"]
VARIANTS = [
    "full",
    "no memory",
    "past alone",
    "no clipping",
    "no twins",
]
SEARCH = "search from round 41"
ATTACKS = [
    *("none", "ipm(epsilon=0.5)", "jitter(ipm(epsilon=0.5))"),
    *("jitter(ipm(epsilon=0.1))", "jitter(alie)", "signflip"),
    "during(jitter(ipm(epsilon=10)), start=41)",
    "during(jitter(ipm(epsilon=3)), start=41)",
    "during(jitter(drift(ipm(epsilon=10), rounds=10, start=41)), start=41)",
    SEARCH,
]
STRENGTHS = [0.1, 0.5, 1, 2, 3, 5, 8, 12, 20]
ROUNDS, BETA = 60, 0.99

Array = NDArray[Any]


def aggregate(
    variant: str, rule: Aggregator, memory: NodeMemory, rows: Array, f: int
) -> Array:
    """Return the aggregate of a variant."""
    present, budget = Updates.of(rows), Budget(len(rows), f)
    nodes = range(len(rows))
    if variant == "no memory":
        weights = rule.solve(present, budget).weights()
    elif variant == "past alone":
        weights = rule.solve(memory.remember(nodes, present), budget).weights()
    else:
        weights = weigh_nodes(rule, memory, nodes, present, budget)
    assert weights is not None
    if variant != "no clipping":
        weights = weights * clip_factors(present, weights)
    step: Array = present.combine(weights)[0]
    return step


def search(
    variant: str, rule: Aggregator, memory: NodeMemory, honest: Array, lies: Array
) -> Array:
    """Return the lies −εμ + their noise with the ε that sets the step back most."""
    mean = honest.mean(axis=0)

    def progress(strength: float) -> float:
        rows = np.vstack([lies - strength * mean, honest])
        step = aggregate(variant, rule, copy.deepcopy(memory), rows, len(lies))
        return float(step @ mean)

    strongest: Array = lies - min(STRENGTHS, key=progress) * mean
    return strongest


def run(variant: str, base: str, attack_text: str, f: int, seed: int) -> list[float]:
    """Return the accuracy of each round."""
    digits = Digits(seed)
    rule = parse_aggregator(base if variant == "no twins" else f"distinct({base})")
    searches = attack_text == SEARCH
    attack = parse_attack("none" if searches else attack_text)
    known, memory = dict[str, Any](), NodeMemory(BETA)
    data = [(digits.images[part], digits.labels[part]) for part in digits.parts]
    row, history = digits.start, []
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, ROUNDS + 1):
            rng = np.random.default_rng([seed, t])
            updates = local_steps(digits, row, data, rng, batch=8)
            if isinstance(attack, UpdateAttack):
                updates[:f] = [attack.corrupt(update, rng) for update in updates[:f]]
            aimed = attack.at(t, rng).against(rule, f)
            seen = Knowledge(
                updates[f:], updates[:f], rng, server_round=t, model=row, memory=known
            )
            lies = aimed.collude(seen)
            if searches and t > 40:
                noise = 0.3 * updates[f:].std(axis=0)
                noise = noise * rng.standard_normal((f, len(noise)))
                lies = search(variant, rule, memory, updates[f:], noise)
            rows = np.vstack([lies, updates[f:]])
            row = row + aggregate(variant, rule, memory, np.clip(rows, -1e6, 1e6), f)
            history.append(digits.accuracy(row))
    return history


def report(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: the mean of the last five rounds, and its lowest."""
    text = []
    counts = sorted({line["f"] for line in lines}, reverse=True)
    for f, rule in itertools.product(counts, RULES):
        text += ["", f"{rule}, {f} of {N}", ""]
        text += [
            f"| attack | {' | '.join(VARIANTS)} |",
            "|---" * (len(VARIANTS) + 1) + "|",
        ]
        for attack in ATTACKS:
            cells = []
            for variant in VARIANTS:
                found = [
                    line["accuracies"]
                    for line in lines
                    if (line["f"], line["rule"], line["attack"], line["variant"])
                    == (f, rule, attack, variant)
                ]
                cell = _mean_and_least([float(np.mean(a[-5:])) for a in found])
                if "41" in attack:
                    cell = _mean_and_least([min(a[40:]) for a in found])
                cells.append(cell)
            text.append(f"| `{attack}` | {' | '.join(cells)} |")
    return "\n".join(text)


def _mean_and_least(accuracies: list[float]) -> str:
    if not accuracies:
        return "–"
    return f"{100 * np.mean(accuracies):.1f} ({100 * min(accuracies):.1f})"


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--malicious", type=int, default=8)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "runs.jsonl"
    lines = []
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    done = {tuple(line[k] for k in _KEYS) for line in lines}
    seeds = range(1, options.seeds + 1)
    wanted = itertools.product(VARIANTS, seeds, RULES, ATTACKS)
    with threadpool_limits(1), path.open("a") as file:
        for variant, seed, rule, attack in wanted:
            f = options.malicious
            if (seed, f, rule, attack, variant) in done:
                continue
            accuracies = run(variant, rule, attack, f, seed)
            values = (seed, f, rule, attack, variant, accuracies)
            lines.append(dict(zip((*_KEYS, "accuracies"), values, strict=True)))
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
    print(report(lines))


_KEYS = ("seed", "f", "rule", "attack", "variant")


if __name__ == "__main__":
    main()
