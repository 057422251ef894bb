"""What tests of several rooms share."""

import gc

import pytest

from flwr_ctma.strategy.robust import RobustStrategy


def pytest_collection_modifyitems(items):
    """Refuse names with an address: the processes of pytest-xdist must agree."""
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named:
        raise pytest.UsageError(f"Give these parameters `ids`: {named}")


def pytest_collection_finish():
    """Keep imported modules and collected tests out of garbage collections.

    Flower collects garbage after every reply, which takes as long as there are objects.
    """
    gc.freeze()


@pytest.fixture
def one_thread():
    """Let torch compute on one core: the same bits, and no waiting for others."""
    torch = pytest.importorskip("torch")  # here: most tests run without it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def runs_accept_replies(request, monkeypatch):
    """Fail a test in which a whole run of a `RobustStrategy` accepts no reply.

    Such a run compares an untrained model with itself. A test that means it has the
    mark `accepts_nothing`.
    """
    if request.node.get_closest_marker("accepts_nothing"):
        yield
        return
    fruitless = []
    end_run = RobustStrategy.end_run

    def checked_end_run(self, result):
        if self._progress.asked and not self._progress.accepted:
            fruitless.append(self._progress)
        return end_run(self, result)

    monkeypatch.setattr(RobustStrategy, "end_run", checked_end_run)
    yield
    assert not fruitless, f"No reply was accepted in a whole run: {fruitless[0]}"
