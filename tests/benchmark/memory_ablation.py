"""What each part of the defence by memory contributes, on digits.

    python -m tests.benchmark.memory_ablation --output runs/ablation

The setting is that of `tests.benchmark.attack_table`, with batches of 8 and 60 rounds.
The full defence is `distinct(RULE)` that weighs what is remembered of 17 clients with
β = 0.99, and applies its weights to their clipped present updates. Each variant leaves
one part out, or adds a look at the present: "checked" takes the geometric median of the
present updates with the weights that the memory gave; in "both" each client counts by
the product of its weight in memory and its weight in the present.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from flwr_ctma import parse_aggregator
from flwr_ctma.aggregators import Aggregator, Budget, GeometricMedian
from flwr_ctma.attacks import Knowledge, parse_attack
from flwr_ctma.attacks.update import UpdateAttack
from flwr_ctma.engine.updates import Updates
from flwr_ctma.strategy.round.memory import NodeMemory, clip_factors
from tests.benchmark.attack_table import Digits, N, local_steps

RULES = ["nnm(gm)", "caf"]
VARIANTS = [
    "full",
    "no memory",
    "no twins",
    "no clipping",
    "no weights",
    "checked",
    "both",
]
ATTACKS = [
    *("none", "ipm(epsilon=0.5)", "jitter(ipm(epsilon=0.5))"),
    *("jitter(ipm(epsilon=0.1))", "jitter(alie)", "signflip"),
    "during(jitter(ipm(epsilon=10)), start=41)",
]
ROUNDS, BETA = 60, 0.99

Array = NDArray[Any]


def aggregate(
    variant: str, rule: Aggregator, memory: NodeMemory, rows: Array, f: int
) -> Array:
    """Return the aggregate of a variant."""
    present, budget = Updates.of(rows), Budget(len(rows), f)
    remembered = memory.remember(range(len(rows)), present)
    judged = present if variant == "no memory" else remembered
    weights = rule.solve(judged, budget).weights()
    assert weights is not None
    if variant != "no clipping":
        weights_now = weights * clip_factors(present, weights)
    else:
        weights_now = weights
    if variant == "no weights":  # a step along the remembered rows
        return remembered.combine(weights)[0]
    if variant == "checked":
        return GeometricMedian()(rows, f=0, weights=np.maximum(weights, 0))
    if variant == "both":
        now = rule.solve(present, budget).weights()
        assert now is not None
        product = np.maximum(weights * now, 0)
        weights_now = product / product.sum() if product.any() else weights
        weights_now = weights_now * clip_factors(present, weights_now)
    return present.combine(weights_now)[0]


def run(variant: str, base: str, attack_text: str, f: int, seed: int) -> list[float]:
    """Return the accuracy of each round."""
    digits = Digits(seed)
    rule = parse_aggregator(base if variant == "no twins" else f"distinct({base})")
    attack, known, memory = parse_attack(attack_text), dict[str, Any](), None
    memory = NodeMemory(BETA)
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
            rows = np.vstack([aimed.collude(seen), updates[f:]])
            row = row + aggregate(variant, rule, memory, np.clip(rows, -1e6, 1e6), f)
            history.append(digits.accuracy(row))
    return history


def report(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table: the last five rounds of each seed."""
    text = []
    for f, rule in itertools.product((5, 8), RULES):
        text += ["", f"{rule}, {f} of {N}", ""]
        text += [f"| attack | {' | '.join(VARIANTS)} |", "|---" * 8 + "|"]
        for attack in ATTACKS:
            cells = []
            for variant in VARIANTS:
                found = [
                    line["accuracies"]
                    for line in lines
                    if (line["f"], line["rule"], line["attack"], line["variant"])
                    == (f, rule, attack, variant)
                ]
                cell = ", ".join(f"{100 * np.mean(a[-5:]):.1f}" for a in found)
                if attack.startswith("during"):
                    worst = ", ".join(f"{100 * min(a[40:]):.1f}" for a in found)
                    cell += f" (worst {worst})"
                cells.append(cell or "–")
            text.append(f"| `{attack}` | {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "runs.jsonl"
    lines = []
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    done = {tuple(line[k] for k in _KEYS) for line in lines}
    wanted = itertools.product(
        range(1, options.seeds + 1), (8, 5), RULES, ATTACKS, VARIANTS
    )
    with threadpool_limits(1), path.open("a") as file:
        for seed, f, rule, attack, variant in wanted:
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
