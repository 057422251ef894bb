"""What tests of several rooms share."""

import pytest


@pytest.fixture
def one_thread():
    """Let torch compute on one core: the same bits, and no waiting for others."""
    torch = pytest.importorskip("torch")  # here: most tests run without it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
