"""A SuperLink and SuperNodes on loopback, for tests and timings of deployments."""

import json
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from flwr_ctma.experiments.processes import (
    free_address,
    last_run,
    process,
    spell_config,
    superlink,
)

DEPLOYED = Path(__file__).parent / "apps" / "deployed"


WITHHOLDING = (sys.executable, "-m", "tests.helpers.withholding_supernode")


@contextmanager
def deployment(folder, nodes, withholding=()):
    """Yield the environment of `flwr`, and the processes of the SuperNodes.

    Partitions that are `withholding` never upload the arrays of their replies.
    """
    with ExitStack() as stack:
        # Left in reverse order: a SuperNode whose SuperLink is gone hangs.
        env, address = stack.enter_context(superlink())
        join = partial(supernode, folder, env, address, num_partitions=nodes)
        programs = [
            WITHHOLDING if partition in withholding else ("flower-supernode",)
            for partition in range(nodes)
        ]
        yield (
            env,
            [
                stack.enter_context(join(partition, program=program))
                for partition, program in enumerate(programs)
            ],
        )


@contextmanager
def supernode(
    folder, env, address, partition, num_partitions, program=("flower-supernode",)
):
    """Yield the process of a SuperNode that serves a partition, and log to a file."""
    host, _, port = free_address().partition(":")
    node = f"partition-id={partition} num-partitions={num_partitions}"
    command = [*program, "--insecure", "--superlink", address]
    command += ["--host", host, "--port", port, "--node-config", node]
    log = (folder / f"node-{partition}.log").open("wb")
    with log, process(command, log, env) as running:
        yield running


def run(app, config, env):
    """Run an app to its end; return its output."""
    streamed = subprocess.run(
        ["flwr", "run", app, "--stream", "--run-config", spell_config(config)],
        env=env,
        capture_output=True,
        text=True,
    )
    status, _ = last_run(env)
    assert status == "finished:completed", streamed.stdout
    return streamed.stdout


def journal(path):
    """Return the lines of the rounds that the app in `deployed` has finished."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if "\n" in line]


def wait_for(path, condition, seconds=300):
    """Wait until the finished rounds fulfil a condition; return them."""
    deadline = time.monotonic() + seconds
    while not condition(rounds := journal(path)):
        assert time.monotonic() < deadline, rounds
        time.sleep(0.2)
    return rounds
