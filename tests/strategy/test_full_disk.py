"""A disk that is really full: one clear error, and a run that goes on later."""

import shutil
import subprocess

import pytest

from flwr_ctma.tracking.checkpoint import CheckpointError, latest
from tests.strategy.test_checkpointed import start


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of half a megabyte, in memory."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(tmp_path)]
    mounted = shutil.which("mount") and not subprocess.run(mount).returncode
    if not mounted:
        pytest.skip("this process may not mount a disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("left", [0, 4096, 12288])
def test_a_run_goes_on_when_there_is_room_again(small_disk, left):
    """Nothing fits, or one of the two files does, or both but not the next round's."""
    folder, filler = small_disk / "run", small_disk / "filler"
    start(folder, rounds=5)
    with filler.open("wb", 0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - left)
    with pytest.raises(CheckpointError, match=r"Could not save round .*No space left"):
        start(folder, rounds=100)
    kept = sorted(folder.iterdir())
    last = latest(folder).number
    assert last >= 5
    assert [path.name for path in kept] == [f"round-{last + i:08d}" for i in (-1, 0)]
    filler.unlink()
    assert start(folder, rounds=last + 3).arrays == start(None, rounds=last + 3).arrays
