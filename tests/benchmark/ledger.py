"""How well the ledger tells who attacks, framing included.

    python -m tests.benchmark.ledger

Each cell is the mean over seeds of the area under the ROC curve of the order of
suspicion, then malicious and honest suspects per run. Updates are a common drift plus
noise of each client's own; with momentum, the noise of a client lasts.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_ctma import parse_aggregator
from flwr_ctma.tracking.ledger import Ledger

N, D, ROUNDS, SEEDS = 17, 300, 60, 3
RULES = ("ctma(gm)", "cwmed", "caf", "nnm(cwmed)")
COUNTS = (3, 5, 8)
Rows = NDArray[np.float64]


def frame(honest: Rows, own: Rows, rng: np.random.Generator) -> Rows:
    """Lean away from the reply of one honest client, and look like anyone else."""
    away = honest[0] - honest.mean(0)
    away /= np.linalg.norm(away)
    lies = rng.normal(size=own.shape)
    return honest.mean(0) + lies - np.outer(lies @ away, away) - 8 * away


def flip_labels(honest: Rows, own: Rows, rng: np.random.Generator) -> Rows:
    """Turn the drift round in a third of the coordinates."""
    lies = own.copy()
    lies[:, ::3] -= 2 * honest.mean(0)[::3]
    return lies


ATTACKS: dict[str, Callable[[Rows, Rows, np.random.Generator], Rows]] = {
    "none": lambda honest, own, rng: own,
    "signflip": lambda honest, own, rng: -own,
    "labelflip": flip_labels,
    "noise": lambda honest, own, rng: own + rng.normal(size=own.shape),
    "ipm(0.5)": lambda honest, own, rng: np.tile(-0.5 * honest.mean(0), (len(own), 1)),
    "alie(1)": lambda honest, own, rng: np.tile(
        honest.mean(0) - honest.std(0), (len(own), 1)
    ),
    "mimic": lambda honest, own, rng: np.tile(honest[0], (len(own), 1)),
    "framing": frame,
}


def play(
    rule: str, attack: str, f: int, seed: int, momentum: float = 0.0
) -> tuple[float, int, int]:
    """Return the AUC, and how many malicious and honest nodes are suspects."""
    rng, ledger = np.random.default_rng(seed), Ledger()
    aggregator = parse_aggregator(rule)
    drift = rng.normal(size=D)
    drift *= 2 / np.linalg.norm(drift)
    noise, before = rng.normal(size=(N, D)), None
    for _ in range(ROUNDS):
        fresh = rng.normal(size=(N, D)) * np.sqrt(1 - momentum**2)
        noise = momentum * noise + fresh
        updates = drift + noise
        lies = ATTACKS[attack](updates[f:], updates[:f], rng)
        rows = np.vstack([lies, updates[f:]])
        found: Any = aggregator.aggregate(rows, f=f)
        distances = found.distances
        if before is not None:
            distances = np.linalg.norm(rows - before, axis=1)
        predictable = before is not None
        ledger.note(range(N), distances=distances, predictable=predictable, f=f)
        before = found.vector
    suspects = set(ledger.suspects())
    liars = set(range(f)) if attack != "none" else set()
    auc = ledger.auc(liars)
    return (
        np.nan if auc is None else auc,
        len(suspects & liars),
        len(suspects - liars),
    )


def cell(rule: str, attack: str, f: int, momentum: float = 0.0) -> str:
    """Play all seeds, and write the cell."""
    played = [play(rule, attack, f, seed, momentum) for seed in range(SEEDS)]
    auc, found, alarms = np.mean(played, axis=0)
    told = f"{found:.1f}+{alarms:.1f}"
    return told if attack == "none" else f"{auc:.2f} · {told}"


def main() -> None:
    """Print the tables."""
    for momentum in (0.0, 0.9):
        columns = [f"`{rule}`, {f}" for rule, f in product(RULES, COUNTS)]
        print(f"\nMomentum {momentum}, {ROUNDS} rounds, {SEEDS} seeds\n")
        print("| attack | " + " | ".join(columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for attack in ATTACKS:
            cells = [cell(r, attack, f, momentum) for r, f in product(RULES, COUNTS)]
            print(f"| {attack} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
