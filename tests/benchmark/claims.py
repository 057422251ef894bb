"""Re-make a claim of the pages, and compare it with the page.

    python -m tests.benchmark.claims                  list all claims
    python -m tests.benchmark.claims dp-mean caf-at-8-ipm

`docs/claims.toml` has the claims. Two small measurements that some of them need are
here as well: `--one-sign-of-nine RULE` and `--points-lost RULE ATTACK F`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flwr_ctma import parse_aggregator
from tests.benchmark import attack_table

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Claim:
    """A number in a page, and the command that re-makes it."""

    name: str
    page: str
    text: str
    value: float
    tolerance: float
    command: str
    pattern: str
    time: str
    measured: str = ""

    def find(self, output: str) -> float:
        """Return the value in the output of the command."""
        found = re.search(self.pattern, output, re.M)
        if not found:
            raise ValueError(
                f"{self.name}: no {self.pattern!r} in the output\n{output}"
            )
        return float(found[1])

    def remake(self) -> float:
        """Run the command, and return the value in its output."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                self.command.replace("{folder}", f"{folder}/runs"),
                **{"shell": True, "cwd": ROOT, "env": {**os.environ, "PATH": path}},
                **{"capture_output": True, "text": True},
            )
        if done.returncode:
            raise RuntimeError(f"{self.name}: the command failed\n{done.stderr}")
        return self.find(done.stdout)

    def agrees(self, value: float) -> bool:
        """Return whether a value is within the tolerance."""
        return abs(value - self.value) <= self.tolerance


def read_claims() -> dict[str, Claim]:
    """Return the claims of `docs/claims.toml` by name."""
    tables = tomllib.loads((ROOT / "docs" / "claims.toml").read_text(encoding="utf-8"))
    return {name: Claim(name, **table) for name, table in tables.items()}


def one_sign_of_nine(rule: str) -> float:
    """Return how far a rule moves if one of nine clients, 5 at +1, changes its sign."""
    aggregate = parse_aggregator(rule)
    ends = []
    for positive in (5, 4):
        rows = np.where(np.arange(9) < positive, 1.0, -1.0)[:, None]
        ends.append(float(aggregate(rows, f=0 if rule == "mean" else 3)[0]))
    return abs(ends[0] - ends[1])


def points_lost(rule: str, attack: str, f: int) -> float:
    """Return the points that an attack costs a rule, as the mean of five seeds."""
    lost = [
        attack_table.run(rule, "none", f, seed)
        - attack_table.run(rule, attack, f, seed)
        for seed in range(1, 6)
    ]
    return 100 * float(np.mean(lost))


def main() -> int:
    """List or re-make claims; return 1 if one does not agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--one-sign-of-nine", metavar="RULE")
    parser.add_argument("--points-lost", nargs=3, metavar=("RULE", "ATTACK", "F"))
    options = parser.parse_args()
    if options.one_sign_of_nine:
        print(f"moves by {one_sign_of_nine(options.one_sign_of_nine):.4f}")
        return 0
    if options.points_lost:
        rule, attack, f = options.points_lost
        print(f"loses {points_lost(rule, attack, int(f)):.2f}")
        return 0
    claims = read_claims()
    if unknown := sorted({*options.names} - {*claims}):
        parser.error(f"unknown claims {unknown}; known are {', '.join(claims)}")
    if not options.names:
        for claim in claims.values():
            print(f"{claim.name:28} {claim.value:>6}  {claim.time:10}  {claim.page}")
        return 0
    failed = 0
    for name in options.names:
        claim = claims[name]
        value = claim.remake()
        failed += not claim.agrees(value)
        verdict = "agrees" if claim.agrees(value) else "DIFFERS"
        print(
            f"{name}: {value:g}, {claim.value} ± {claim.tolerance} claimed: {verdict}"
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
