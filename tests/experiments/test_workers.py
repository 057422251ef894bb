"""The processes that run federations side by side."""

import subprocess
import sys

SCRIPT = """
import sys, time
from pathlib import Path
from flwr_ctma.experiments.workers import single_core_pool

with single_core_pool(1, Path(sys.argv[1])) as pool:
    assert pool.submit(abs, -1).result() == 1
    pool.submit(time.sleep, 600)
    print("at work", flush=True)
    time.sleep(600)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """The pipe is at its end when nobody is left who could write into it."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "log.txt")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    process.kill()
    left, _ = process.communicate(timeout=60)
    assert left == ""
