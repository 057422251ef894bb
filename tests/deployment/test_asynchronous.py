"""Asynchronous training in Flower's own runtimes."""

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from flwr_ctma.experiments.processes import last_run, spell_config, superlink
from flwr_ctma.experiments.runtimes import Ray
from flwr_ctma.tracking.checkpoint import latest
from flwr_ctma.tracking.run_folder import RunFolder
from tests.helpers.deployment import supernode

APP = Path(__file__).parents[1] / "helpers" / "apps" / "asyncapp"
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="needs /proc"
)


def rows(folder):
    """What the server knew of each partition at the end."""
    text = (folder / "nodes.json").read_text()
    return {int(partition): row for partition, row in json.loads(text).items()}


def test_ray_simulation_learns_though_a_node_lies_and_another_is_slow(tmp_path):
    config = {"seconds": 0.02, "slow": 4, "output": str(tmp_path / "run")}
    with Ray(APP) as ray:
        for _ in ray.run({**config, "num-rounds": 20}, 5, tmp_path / "log.txt"):
            pass
    lines = RunFolder(tmp_path / "run").rounds()
    assert lines[0]["loss"] > 0.3 and lines[-1]["loss"] < 0.02
    delivered = {i: row["delivered"] for i, row in rows(tmp_path / "run").items()}
    assert sum(delivered.values()) == sum(line["arrivals"] for line in lines[1:]) >= 100
    assert delivered[4] < max(delivered.values())


class Deployment:
    """A SuperLink on loopback, and SuperNodes that come and go."""

    def __init__(self, folder, stack):
        self.folder, self.stack = folder, stack
        self.env, self.address = stack.enter_context(superlink())
        self.nodes = {}

    def join(self, partition):
        node = supernode(self.folder, self.env, self.address, partition, 9)
        self.nodes[partition] = self.stack.enter_context(node)

    def kill(self, partition):
        """With all that it started, as a machine that loses its power."""
        os.killpg(self.nodes[partition].pid, signal.SIGKILL)

    def kill_server(self):
        """The ServerApp alone: SuperLink and SuperNodes live on."""
        os.kill(pid_of("flwr-serverapp", self.address), signal.SIGKILL)

    def begin(self, config):
        command = ["flwr", "run", str(APP), "--run-config", spell_config(config)]
        subprocess.run(command, env=self.env, check=True, capture_output=True)

    def end(self, grace_period):
        deadline = time.monotonic() + grace_period
        while not (status := last_run(self.env)[0]).startswith("finished"):
            assert time.monotonic() < deadline, f"The run is still {status}."
            time.sleep(3)
        return status


def pid_of(program, address):
    """The process of one of Flower's programs that talks to this SuperLink."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if program.encode() in command and address.encode() in command:
            return int(folder.name)
    raise LookupError(f"no {program}")


def wait_for_rounds(folder, number, grace_period=300):
    deadline = time.monotonic() + grace_period
    while len(RunFolder(folder).rounds()) <= number:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.long
def test_deployment_goes_on_while_nodes_are_slow_die_and_come(tmp_path):
    """Partition 0 lies, 1 is ten times slower, 2 is killed, and 5 comes later."""
    output = tmp_path / "run"
    config = {"seconds": 2.0, "slow": 1, "output": str(output), "max-seconds": 240.0}
    with ExitStack() as stack:
        deployment = Deployment(tmp_path, stack)
        for partition in range(5):
            deployment.join(partition)
        deployment.begin({**config, "num-rounds": 1000})
        wait_for_rounds(output, 2)
        deployment.kill(2)
        deployment.join(5)
        assert deployment.end(grace_period=600) == "finished:completed"
    lines, found = RunFolder(output).rounds(), rows(output)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [i for i, row in found.items() if not row["weighs"]] == [2]
    assert found.keys() == set(range(6)) and found[2]["delivered"] > 0
    assert found[1]["delivered"] < found[3]["delivered"]


@pytest.mark.long
@needs_proc
def test_a_server_that_is_killed_goes_on_when_it_is_started_again(tmp_path):
    """It knows the SuperNodes again; what they were doing for the dead one is lost."""
    output = tmp_path / "run"
    config = {"seconds": 1.0, "output": str(output)}
    with ExitStack() as stack:
        deployment = Deployment(tmp_path, stack)
        for partition in range(5):
            deployment.join(partition)
        deployment.begin({**config, "num-rounds": 1000})
        wait_for_rounds(output, 3)
        deployment.kill_server()
        saved = latest(output / "checkpoints")
        deployment.begin({**config, "num-rounds": saved.number + 2})
        assert deployment.end(grace_period=600) == "finished:completed"
    before = saved.state["strategies"][1]["state"]["clients"]["clients"]
    rounds = [line["round"] for line in RunFolder(output).rounds()]
    assert sorted(set(rounds)) == list(range(saved.number + 3))
    ended = latest(output / "checkpoints")
    after = ended.state["strategies"][1]["state"]["clients"]["clients"]
    assert ended.number == saved.number + 2 and after.keys() == before.keys()
    for node, client in after.items():
        assert client["count"] >= before[node]["count"] > 0
        assert client["asked"] - client["delivered"] <= 2


@pytest.mark.long
@needs_proc
def test_a_simulation_that_stood_still_goes_on_when_it_is_started_again(tmp_path):
    """After a minute, as of a laptop that sleeps, Flower has given it up."""
    output = tmp_path / "run"
    config = {"seconds": 0.2, "output": str(output)}
    with superlink("--simulation") as (env, address):
        run = ["flwr", "run", str(APP), "--federation-config", "num-supernodes=5"]
        run += ["--stream", "--run-config"]
        first = [*run, spell_config({**config, "num-rounds": 1000})]
        with subprocess.Popen(first, env=env, stdout=subprocess.DEVNULL) as running:
            wait_for_rounds(output, 2)
            simulation = pid_of("flwr-simulation", address)
            os.kill(simulation, signal.SIGSTOP)
            time.sleep(65)
            os.kill(simulation, signal.SIGCONT)
            running.wait(60)
        deadline = time.monotonic() + 120
        with suppress(LookupError):
            while pid_of("flwr-simulation", address):
                assert time.monotonic() < deadline, "It goes on for itself."
                time.sleep(1)
        said = ("finished:failed", "No heartbeat received from the task")
        assert last_run(env) == said
        saved = latest(output / "checkpoints").number
        second = [*run, spell_config({**config, "num-rounds": saved + 2})]
        subprocess.run(second, env=env, check=True, stdout=subprocess.DEVNULL)
        assert last_run(env)[0] == "finished:completed"
    rounds = [line["round"] for line in RunFolder(output).rounds()]
    assert sorted(set(rounds)) == list(range(saved + 3))
