"""Seconds per round of a deployment in which one client of four is silent.

    python -m tests.benchmark.silence                    twenty minutes
    python -m tests.benchmark.silence --timeout 120      Flower's default is 3600

A SuperLink and four SuperNodes on loopback, and an app whose clients have next to
nothing to compute: most of a round is what Flower's processes take to start. From the
second round on, the ClientApp of the first client sleeps, while its SuperNode lives on
and says so. Of the rounds after the first: the median, and the longest.
"""

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers.deployment import DEPLOYED, deployment, journal, run

ROUNDS = 8


def seconds(**config):
    """Time the rounds after the first."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        config |= {"num-server-rounds": ROUNDS, "journal": str(path)}
        with deployment(Path(folder), 4) as (env, _):
            run(DEPLOYED, config, env)
        rounds = journal(path)
    taken = [r["seconds"] for r in rounds[1:]]
    return f"{statistics.median(taken):.0f}, {max(taken):.0f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--timeout", type=float, default=60.0, help="of a round")
    timeout = parser.parse_args().timeout
    print("| strategy | timeout | nobody silent | one silent |\n|---|---|---|---|")
    for name, robust in (("`FedAvg`", False), ("`RobustStrategy`", True)):
        settings = {"robust": robust, "timeout": 3600.0 if robust else timeout}
        answered, silent = (seconds(silent=count, **settings) for count in (0, 1))
        print(f"| {name} | {settings['timeout']:.0f} | {answered} | {silent} |")


if __name__ == "__main__":
    main()
