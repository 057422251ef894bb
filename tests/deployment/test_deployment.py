"""The same apps in a real deployment: a SuperLink and SuperNodes on loopback."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flwr_ctma.experiments.processes import last_run, process, spell_config
from flwr_ctma.experiments.runtimes import Ray
from flwr_ctma.tracking.run_folder import RunFolder
from tests.helpers.deployment import DEPLOYED, deployment, journal, run, wait_for

ROOT = Path(__file__).parents[2]
NODES = 3


def test_deployed_app_trains_against_a_malicious_node(tmp_path):
    """Bytes that are no array prove that their sender is the one: two are enough."""
    output = tmp_path / "run"
    config = {
        "num-nodes": NODES,
        "num-malicious-nodes": 1,
        "attack": "malformed(fault=garbage)",
        "num-server-rounds": 2,
        "output": str(output),
    }
    with deployment(tmp_path, NODES) as (env, _):
        run(ROOT, config, env)
    rounds = RunFolder(output).rounds()
    assert [r["rejected"] for r in rounds[1:]] == [[0], [0]]
    assert [r["replies-accepted"] for r in rounds[1:]] == [NODES - 1, NODES - 1]
    model = load_file(output / "model.safetensors")
    assert all(np.isfinite(array).all() for array in model.values())


@pytest.mark.long
def test_a_silent_client_of_a_simulation_costs_a_grace(tmp_path):
    """The timeout is an hour."""
    path = tmp_path / "journal"
    config = {"silent": 1, "sleeps": 0.0, "grace": 1.0, "journal": str(path)}
    with Ray(DEPLOYED) as ray:
        for _ in ray.run(config, 4, tmp_path / "log.txt"):
            pass
    rounds = journal(path)
    assert [r["replies-accepted"] for r in rounds] == [4, 3, 3, 3, 3]
    assert all(r["seconds"] < 300 for r in rounds)
    assert rounds[-1]["distance"] < 10 < 100 < rounds[0]["distance"]


@pytest.mark.long
def test_silent_and_killed_nodes_cost_their_replies(tmp_path):
    """One SuperNode of four stops, comes back; then another one is killed for good.

    The one that is killed is gone for longer than the minute in which a SuperLink takes
    note of it: the app's FedAvg wants four nodes, and would wait for it for ever.
    """
    path = tmp_path / "journal"
    config = {"num-nodes": 4, "num-server-rounds": 12, "journal": str(path)}
    command = ["flwr", "run", str(DEPLOYED), "--stream"]
    command += ["--run-config", spell_config(config)]
    with ExitStack() as stack:
        env, nodes = stack.enter_context(deployment(tmp_path, 4))
        log = stack.enter_context((tmp_path / "run.log").open("wb"))
        running = stack.enter_context(process(command, log, env))
        wait_for(path, lambda rounds: len(rounds) >= 2)
        os.killpg(nodes[0].pid, signal.SIGSTOP)
        stopped = len(wait_for(path, lambda rounds: len(rounds) >= 4))
        os.killpg(nodes[0].pid, signal.SIGCONT)
        back = wait_for(path, lambda rounds: 0 in clients(rounds[-1]))
        os.killpg(nodes[1].pid, signal.SIGKILL)
        running.wait(timeout=600)
        assert last_run(env)[0] == "finished:completed"
    rounds = wait_for(path, len)
    assert len(rounds) == 12
    # Every reply answers the round that it was counted in, and not an earlier one.
    assert all(asked == r["round"] for r in rounds for _, asked in r["replied"])
    assert all(r["replies-accepted"] == len(r["replied"]) >= 3 for r in rounds)
    assert clients(rounds[1]) == {0, 1, 2, 3}
    assert all(0 not in clients(r) for r in rounds[3:stopped])
    assert all(1 not in clients(r) for r in rounds[len(back) + 1 :])
    assert 0 in clients(rounds[-1])
    assert rounds[-1]["errors"] == 1, "the SuperLink has noticed who is dead"
    assert rounds[-1]["distance"] < 1 < 100 < rounds[0]["distance"]


@pytest.mark.long
def test_withheld_upload_costs_a_grace_period(tmp_path):
    """One SuperNode of four announces its replies and never uploads their arrays.

    Flower's own grid waits two hours for each.
    """
    path = tmp_path / "journal"
    config = {"num-nodes": 4, "num-server-rounds": 4, "grace": 5.0}
    with deployment(tmp_path, 4, withholding=[0]) as (env, _):
        run(DEPLOYED, {**config, "journal": str(path)}, env)
    rounds = journal(path)
    assert [clients(r) for r in rounds] == [{1, 2, 3}] * 4
    assert all(r["seconds"] < 300 for r in rounds)
    assert rounds[-1]["distance"] < 30 < 100 < rounds[0]["distance"]


def clients(line):
    return {client for client, _ in line["replied"]}
