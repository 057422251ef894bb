"""The commands of docs/deployment.md as they stand: who may join, and who not."""

import os
import re
import shutil
import subprocess
import sysconfig
import time
from contextlib import ExitStack

import pytest

from flwr_ctma.experiments.processes import free_address, process
from tests.helpers.deployment import DEPLOYED, journal
from tests.helpers.pages import DOCS, Page

TURNED_AWAY = "Exit Code: 305"


class Machines:
    """All machines of the page in one folder, with ports of their own.

    Parameters
    ----------
    folder : Path
        Where commands run, and the home of their user.
    stack : ExitStack
        Ends what they start.
    door : bool
        Whether there is a proxy; else nodes reach the SuperLink itself.
    """

    def __init__(self, folder, stack, door):
        self.folder, self.stack = folder, stack
        self.link = free_port()
        self.door = free_port() if door else self.link
        scripts = sysconfig.get_path("scripts")
        self.env = os.environ | {
            "HOME": str(folder),
            "PATH": os.pathsep.join([scripts, os.environ["PATH"], "/usr/sbin"]),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.env.pop("FLWR_HOME", None)

    def run(self, text, **names):
        """Run commands to their end; give what they said if they succeeded."""
        done = subprocess.run(
            ["bash", "-e", "-c", self.spelled(text, names)],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, text, log, **names):
        """Start a server that stays; give its process."""
        command = f"cd {self.folder}; exec {self.spelled(text, names)}"
        file = self.stack.enter_context((self.folder / log).open("wb"))
        return self.stack.enter_context(
            process(["bash", "-c", command], file, self.env)
        )

    def said(self, log):
        return (self.folder / log).read_text(encoding="utf-8", errors="replace")

    def spelled(self, text, names):
        """Put this machine's names and ports for those of the page."""
        here = {"8000": self.link, "8443": self.door, "9094": free_port()}
        here |= {"fl.example.org": "localhost", "path/to/your/app": "app"}
        changes = here | names
        return re.sub(
            "|".join(map(re.escape, changes)), lambda found: changes[found[0]], text
        )


def commands():
    """Give the commands of the page by their sections."""
    page = Page(DOCS / "deployment.md")
    lines = page.text.splitlines()
    found = {}
    for block in page.blocks():
        if block.language == "bash":
            above = [line for line in lines[: block.line] if line.startswith("## ")]
            found.setdefault(above[-1].removeprefix("## "), []).append(block.text)
    return found


def free_port():
    return free_address().partition(":")[2]


def wait(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def app_in(folder, nodes, path):
    """Copy the app of the deployment tests, with settings for this run as defaults."""
    shutil.copytree(DEPLOYED, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "pyproject.toml"
    text = file.read_text(encoding="utf-8")
    for key, old, new in (
        ("num-nodes", 4, nodes),
        ("num-malicious-nodes", 1, 0),
        ("num-server-rounds", 5, 2),
        ("size", 10, 10_000_000),  # 80 MB, more than a request may have
        ("journal", '""', f'"{path}"'),
    ):
        assert f"{key} = {old}\n" in text
        text = text.replace(f"{key} = {old}\n", f"{key} = {new}\n")
    file.write_text(text, encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("door", [True, False], ids=["door", "no door"])
def test_who_is_registered_takes_part_and_nobody_else(tmp_path, door):
    if door and not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("nginx is not installed")
    page, path = commands(), tmp_path / "journal"
    app_in(tmp_path / "app", nodes=2, path=path)
    with ExitStack() as stack:
        at = Machines(tmp_path, stack, door)
        (certificates,) = page["Certificates"]
        at.run(certificates)
        superlink, connection = page["The SuperLink"]
        at.start(superlink, "superlink.log")
        at.run(connection)
        key, register, supernode = page["A node"]
        wait(lambda: "Uvicorn running" in at.said("superlink.log"))
        if door:
            (proxy,) = page["The proxy"]
            at.run(proxy)
            stack.callback(at.run, 'nginx -c "$PWD/proxy.conf" -s stop')
        intruder = {"hospital-a": "intruder", "partition-id=0": "partition-id=2"}
        at.run(key, **intruder)
        turned_away = at.start(supernode, "intruder.log", **intruder)
        for partition, name in enumerate(["hospital-a", "hospital-b"]):
            names = {"hospital-a": name, "partition-id=0": f"partition-id={partition}"}
            at.run(key, **names)
            assert "registered successfully" in at.run(register, **names)
            at.start(supernode, f"{name}.log", **names)
        assert turned_away.wait(timeout=120) != 0
        assert TURNED_AWAY in at.said("intruder.log")
        (app,) = page["A run"]
        at.run(app)
        replied = [[client for client, _ in r["replied"]] for r in journal(path)]
        assert replied == [[0, 1], [0, 1]]
        # An intruder has `flwr` as well, and asks from where nodes are.
        outside = "cat >> ~/.flwr/config.toml <<END\n[superlink.outside]\naddress = "
        at.run(outside + '"localhost:8443"\nroot-certificates = "$PWD/ca.crt"\nEND')
        ask = "flwr supernode register intruder.pub outside"
        if door:
            with pytest.raises(AssertionError, match="403"):
                at.run(ask)
        else:
            at.run(ask)
            at.start(supernode, "let-in.log", **intruder)
            wait(lambda: "SuperNode ID" in at.said("let-in.log"))
