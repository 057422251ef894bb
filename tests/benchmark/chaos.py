"""A deployment in which everything fails, again and again.

    python -m tests.benchmark.chaos FOLDER                an hour
    python -m tests.benchmark.chaos FOLDER --minutes 10

Needs Linux, and the right to mount two small disks. A SuperLink with a database and
seven SuperNodes run on loopback, with f = 2. One SuperNode stalls for 45 s in the
middle of every upload. About every 40 s one thing happens, drawn by a seed:

    superlink    the SuperLink is killed, and started again on its database
    server       the ServerApp is killed
    node         a SuperNode is killed, and started again
    stopped      a SuperNode stops for 30 s, and goes on
    database     the disk of the SuperLink's database is full for 30 s
    checkpoints  the disk of the checkpoints is full for 30 s

A run that has ended is started again and resumes from its checkpoint, as an operator
would do. `FOLDER/events.jsonl` has what happened and when; at the end, what was lost
is printed.
"""

import argparse
import json
import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from flwr_ctma.experiments import processes
from flwr_ctma.experiments.processes import RunFailed, last_run, process, spell_config
from flwr_ctma.tracking.checkpoint import latest
from tests.deployment.test_asynchronous import pid_of
from tests.helpers.deployment import DEPLOYED, WITHHOLDING, journal

NODES, MALICIOUS, SIZE = 7, 2, 20_000
KINDS = ("superlink", "server", "node", "stopped", "database", "checkpoints")
CHECK = 15.0  # seconds between looks at the run


@contextmanager
def small_disk(path, size):
    """Mount a disk in memory."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    subprocess.run(command, check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class Chaos:
    """The processes of a deployment, and what happens to them."""

    def __init__(self, folder, stack, seconds):
        self.folder, self.stack = folder, stack
        self.end = time.monotonic() + seconds
        self.rng = np.random.default_rng(0)
        self.address = processes.free_address()
        self.env = processes._environment() | {"FLWR_HOME": str(folder / "home")}
        self.disks = {
            "database": stack.enter_context(small_disk(folder / "database", "256m")),
            "checkpoints": stack.enter_context(small_disk(folder / "saved", "2m")),
        }
        self.running = {}
        self.later = []
        self.counts = Counter()
        self.memory = {}
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "{self.address}"\ninsecure = true\n'
        )

    def note(self, kind, **details):
        line = {"at": round(time.time(), 1), "event": kind, **details}
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.counts[kind] += 1

    def start(self, name):
        """Start a process of the deployment by its name."""
        host, _, port = self.address.partition(":")
        env = self.env
        if name == "superlink":
            database = self.disks["database"] / "state.db"
            command = ["flower-superlink", "--insecure", "--host", host, "--port", port]
            command += ["--isolation", "process", "--database", str(database)]
        elif name == "superexec":
            command = ["flower-superexec", "--insecure"]
            command += ["--runtime-api-address", self.address]
        else:
            number = int(name.removeprefix("node-"))
            host, _, port = processes.free_address().partition(":")
            command = ["flower-supernode"] if number else list(WITHHOLDING)
            command += ["--insecure", "--superlink", self.address]
            command += ["--host", host, "--port", port, "--node-config"]
            command += [f"partition-id={number} num-partitions={NODES}"]
            env = env | {"UPLOAD_PAUSE": "45"}
        log = self.stack.enter_context((self.folder / f"{name}.log").open("ab"))
        self.running[name] = self.stack.enter_context(process(command, log, env))

    def kill(self, name):
        with suppress(ProcessLookupError):
            os.killpg(self.running[name].pid, signal.SIGKILL)

    def after(self, seconds, action, *arguments):
        self.later.append((time.monotonic() + seconds, action, arguments))

    def strike(self):
        """Let one thing happen."""
        kind = str(self.rng.choice(KINDS))
        name = f"node-{self.rng.integers(NODES)}"
        self.note(kind, node=name if kind in ("node", "stopped") else None)
        if kind == "superlink":
            self.kill("superlink")
            self.running.pop("superlink")
            self.after(self.rng.uniform(2, 20), self.start, "superlink")
        elif kind == "server":
            with suppress(LookupError, ProcessLookupError):
                os.kill(pid_of("flwr-serverapp", self.address), signal.SIGKILL)
        elif kind == "node":
            self.kill(name)
            self.running.pop(name, None)
            self.after(self.rng.uniform(2, 60), self.start, name)
        elif kind == "stopped":
            if name in self.running:
                pid = self.running[name].pid
                self.signal(pid, signal.SIGSTOP)
                self.after(30, self.signal, pid, signal.SIGCONT)
        else:
            filler = self.disks[kind] / "filler"
            with suppress(OSError), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(65536))
            self.after(30, filler.unlink, True)  # it may be gone already

    @staticmethod
    def signal(pid, number):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)

    def repair(self):
        """Start again what has died by itself."""
        for name, running in list(self.running.items()):
            if running.poll() is not None:
                self.note("died", name=name, code=running.returncode)
                self.start(name)

    def look(self):
        """Start the run again if it has ended; note its state and memory."""
        with suppress(LookupError, OSError):
            pids = {n: p.pid for n, p in self.running.items()}
            with suppress(LookupError):
                pids["serverapp"] = pid_of("flwr-serverapp", self.address)
            for name, pid in pids.items():
                self.memory.setdefault(name, []).append(resident(pid))
        try:
            status, details = last_run(self.env)
        except RunFailed as error:
            if self.counts["run"]:
                self.note("no-answer", said=str(error)[-300:])
                return
            status, details = "finished", "not begun"
        if status.startswith("finished"):
            self.note("ended", status=status, details=details)
            config = {
                "num-nodes": NODES,
                "num-malicious-nodes": MALICIOUS,
                "num-server-rounds": 100_000,
                "size": SIZE,
                "timeout": 300.0,
                "journal": str(self.folder / "journal"),
                "checkpoints": str(self.disks["checkpoints"] / "run"),
            }
            command = ["flwr", "run", str(DEPLOYED), "--run-config"]
            began = subprocess.run(
                [*command, spell_config(config)],
                env=self.env,
                capture_output=True,
                text=True,
            )
            said = (began.stdout + began.stderr)[-300:] if began.returncode else ""
            self.note("run" if not began.returncode else "no-run", said=said)

    def go_on(self):
        """Run until the end."""
        for name in ["superlink", *(f"node-{i}" for i in range(NODES))]:
            self.start(name)
            if name == "superlink":
                while not processes._is_healthy(self.address):
                    time.sleep(0.5)
                self.start("superexec")
        next_look = time.monotonic()
        next_strike = next_look + 90
        while (now := time.monotonic()) < self.end:
            due = [entry for entry in self.later if entry[0] <= now]
            self.later = [entry for entry in self.later if entry[0] > now]
            for _, action, arguments in due:
                action(*arguments)
            self.repair()
            if now >= next_strike:
                self.strike()
                next_strike = now + self.rng.exponential(40)
            if now >= next_look and "superlink" in self.running:
                self.look()
                next_look = time.monotonic() + CHECK
            time.sleep(0.5)

    def report(self):
        """Print what happened and what was lost."""
        rounds = journal(self.folder / "journal")
        numbers = [r["round"] for r in rounds]
        saved = latest(self.disks["checkpoints"] / "run")
        print("events", dict(self.counts))
        print(
            "rounds aggregated", len(numbers), "of which different", len(set(numbers))
        )
        print("last round in the checkpoint", saved.number)
        gaps = sorted(set(range(1, max(numbers) + 1)) - set(numbers))
        print("rounds never recorded", gaps)
        counted = Counter(r["replies-accepted"] for r in rounds)
        print("rounds by accepted replies", dict(sorted(counted.items())))
        seconds = np.array([r["seconds"] for r in rounds])
        print("seconds of a round: median, largest", np.median(seconds), seconds.max())
        model = saved.state["arrays"]["w"].numpy()
        print(
            "model finite", np.isfinite(model).all(), "distance", rounds[-1]["distance"]
        )
        for name, values in self.memory.items():
            print(
                f"MB of {name}: first {values[0]}, median {np.median(values):.0f},"
                f" largest {max(values)}, last {values[-1]}"
            )


def resident(pid):
    """Resident MB of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise LookupError(pid)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    with ExitStack() as stack:
        chaos = Chaos(given.folder.resolve(), stack, 60 * given.minutes)
        try:
            chaos.go_on()
        finally:
            chaos.report()


if __name__ == "__main__":
    main()
