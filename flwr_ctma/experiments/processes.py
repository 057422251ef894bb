"""Flower's programs as processes that end when they are no longer needed."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

__all__ = [
    "RunFailed",
    "free_address",
    "last_run",
    "process",
    "spell_config",
    "superlink",
    "watch",
]

_CONNECTION = "flwr-ctma"
_TICK = 0.2
_START_SECONDS = 60
_STOP_SECONDS = 10


class RunFailed(RuntimeError):
    """A run that did not finish; its message is the reason."""


@contextmanager
def superlink(*options: str) -> Iterator[tuple[dict[str, str], str]]:
    """Run a SuperLink on a free port of this machine, with a state folder of its own.

    Parameters
    ----------
    *options : str
        Further options of `flower-superlink`, such as `--simulation`.

    Yields
    ------
    tuple[dict[str, str], str]
        Environment in which `flwr` talks to this SuperLink by default, and its address.

    Raises
    ------
    RunFailed
        If it does not start.
    """
    with TemporaryDirectory(prefix="flwr-ctma-", ignore_cleanup_errors=True) as folder:
        address = free_address()
        env = _environment() | {"FLWR_HOME": folder}
        Path(folder, "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
            f'address = "{address}"\ninsecure = true\n',
            encoding="utf-8",
        )
        host, _, port = address.partition(":")
        command = ["flower-superlink", "--insecure", "--host", host, "--port", port]
        # By itself it would start the SuperExec in a session of its own, where the runs
        # that Flower does not stop (a ServerApp's thread, Ray) are out of reach.
        command += ["--isolation", "process", *options]
        executor = ["flower-superexec", "--insecure", "--runtime-api-address", address]
        log = Path(folder, "superlink.log")
        with log.open("wb") as file, process(command, file, env) as running:
            deadline = time.monotonic() + _START_SECONDS
            while not _is_healthy(address):
                if running.poll() is not None or time.monotonic() > deadline:
                    text = log.read_text(encoding="utf-8", errors="replace")
                    raise RunFailed(f"the SuperLink did not start:\n{text}")
                time.sleep(_TICK)
            with process([*executor, "--parent-pid", str(os.getpid())], file, env):
                yield env, address


def last_run(env: Mapping[str, str]) -> tuple[str, str]:
    """Ask the SuperLink for the status of its last run, and the details of it."""
    listed = subprocess.run(
        ["flwr", "ls", "--limit", "1", "--format", "json"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        run = json.loads(listed.stdout)["runs"][0]
    except (ValueError, LookupError) as error:
        said = listed.stdout + listed.stderr
        raise RunFailed(f"`flwr ls` does not tell how the run ended: {said}") from error
    return run["status"], run["status-details"]


def watch(
    command: list[str], log: Path, env: Mapping[str, str] | None = None
) -> Generator[None, None, int]:
    """Run a command, yield every now and then, return its exit code."""
    with log.open("wb") as file, process(command, file, env) as running:
        while running.poll() is None:
            yield
            time.sleep(_TICK)
    return running.returncode


@contextmanager
def process(
    command: list[str], log: IO[bytes], env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until it ends or the block does, and whatever it starts with it.

    It is out of reach of the terminal: on Ctrl-C, who started it decides the order in
    which things stop.
    """
    running = subprocess.Popen(
        command,
        env=env or _environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            _signal_all(running, end)
            deadline = time.monotonic() + _STOP_SECONDS
            while _signal_all(running, 0) and time.monotonic() < deadline:
                time.sleep(_TICK)


def spell_config(config: Mapping[str, Any]) -> str:
    """Spell scalars as `flwr run` reads them: JSON's are TOML's.

    Examples
    --------
    >>> spell_config({"seed": 1, "attack": "signflip"})
    'seed=1 attack="signflip"'
    """
    # JSON escapes characters beyond the first 65536 in halves, which TOML refuses.
    spelled = {k: json.dumps(v, ensure_ascii=False) for k, v in config.items()}
    return " ".join(f"{key}={value}" for key, value in spelled.items())


def free_address() -> str:
    """Find an address of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _signal_all(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a process and its kin; tell whether there were any."""
    leader.poll()  # lest it count as alive when it only waits to be asked how it ended
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Flower's programs of this installation, quiet, and with nothing to download."""
    scripts = sysconfig.get_path("scripts")
    return os.environ | {
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _is_healthy(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
