"""Which inner loops the engine runs: compiled ones, where they can be had."""

from functools import cache
from importlib import import_module
from types import ModuleType

__all__ = ["kernels"]


@cache
def kernels() -> ModuleType:
    """Give `flwr_ctma.compiled` where Numba is installed, else `flwr_ctma.plain`.

    Both define the same functions of a block, which is n rows of the same columns.
    Numba that does not fit NumPy's version says so by an ImportError.
    """
    try:
        return import_module("flwr_ctma.compiled")
    except ImportError:
        return import_module("flwr_ctma.plain")
