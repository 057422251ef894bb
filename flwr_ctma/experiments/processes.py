"""Flower's programs as child processes that end with the block that started them."""

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
    "describe",
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
    """A run that did not finish; the message is the reason."""


def describe(error: BaseException | None) -> str:
    """Return an error as one line; the sentence of a wrong value stands alone.

    Examples
    --------
    >>> describe(KeyError("lr"))
    "KeyError: 'lr'"
    >>> describe(ValueError("Parameter `lr` should be above 0. Found `lr = -1`."))
    'Parameter `lr` should be above 0. Found `lr = -1`.'
    """
    text = " ".join(str(error).split())
    sentence = isinstance(error, ValueError) and text.startswith("Parameter `")
    return text if sentence else f"{type(error).__name__}: {text}"


@contextmanager
def superlink(*options: str) -> Iterator[tuple[dict[str, str], str]]:
    """Run a SuperLink on a free port of this machine, with its own state folder.

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
        If the SuperLink does not start.
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
        # By default the SuperLink starts the SuperExec in a new session. Runs that
        # Flower does not stop (a ServerApp's thread, Ray) would be out of reach there.
        command += ["--isolation", "process", *options]
        executor = ["flower-superexec", "--insecure", "--runtime-api-address", address]
        log = Path(folder, "superlink.log")
        with log.open("wb") as file, process(command, file, env) as running:
            deadline = time.monotonic() + _START_SECONDS
            while not _is_healthy(address):
                if running.poll() is not None or time.monotonic() > deadline:
                    text = log.read_text(encoding="utf-8", errors="replace")
                    raise RunFailed(f"The SuperLink did not start:\n{text}")
                time.sleep(_TICK)
            with process([*executor, "--parent-pid", str(os.getpid())], file, env):
                yield env, address


def last_run(env: Mapping[str, str]) -> tuple[str, str]:
    """Return the status of the SuperLink's last run, and its details."""
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
        raise RunFailed(f"`flwr ls` shows no status of the run: {said}") from error
    return run["status"], run["status-details"]


def watch(
    command: list[str], log: Path, env: Mapping[str, str] | None = None
) -> Generator[None, None, int]:
    """Run a command; yield several times a second; return the exit code."""
    with log.open("wb") as file, process(command, file, env) as running:
        while running.poll() is None:
            yield
            time.sleep(_TICK)
    return running.returncode


@contextmanager
def process(
    command: list[str], log: IO[bytes], env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until it or the block ends; stop it and all its children.

    The command runs in its own session, so that Ctrl-C in a terminal reaches this
    process alone, which then stops its children in order.
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
    """Write scalars as `flwr run` reads them: JSON scalars are TOML scalars.

    Examples
    --------
    >>> spell_config({"seed": 1, "attack": "signflip"})
    'seed=1 attack="signflip"'
    """
    # JSON escapes characters above U+FFFF as surrogates, which TOML refuses.
    spelled = {k: json.dumps(v, ensure_ascii=False) for k, v in config.items()}
    return " ".join(f"{key}={value}" for key, value in spelled.items())


def free_address() -> str:
    """Return an address of this machine on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _signal_all(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a process group; return whether the group exists."""
    leader.poll()  # a finished process counts as alive until it is polled
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


def _environment() -> dict[str, str]:
    """Environment for Flower's programs of this installation: quiet, no downloads."""
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
