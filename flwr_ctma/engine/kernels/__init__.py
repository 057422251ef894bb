"""Which inner loops the engine runs: compiled ones, where they can be had."""

from functools import cache
from importlib import import_module
from types import ModuleType

__all__ = ["kernels"]


@cache
def kernels() -> ModuleType:
    """Give `flwr_ctma.engine.kernels.numba` where Numba is installed, else `flwr_ctma.engine.kernels.numpy`.

    Both define the same functions of a block, which is n rows of the same columns.
    Numba that does not fit NumPy's version says so by an ImportError.
    """
    try:
        return import_module("flwr_ctma.engine.kernels.numba")
    except ImportError:
        return import_module("flwr_ctma.engine.kernels.numpy")
