"""The inner loops of the engine, in NumPy, Numba and torch."""

from functools import cache
from importlib import import_module

from flwr_ctma.engine.kernels.protocol import CpuPrimitives

__all__ = ["cpu_primitives"]


@cache
def cpu_primitives() -> CpuPrimitives:
    """Return the compiled inner loops where Numba is installed, else those in NumPy.

    Numba raises an ImportError if it does not support the installed NumPy.
    """
    try:
        found: CpuPrimitives = import_module("flwr_ctma.engine.kernels.numba")
    except ImportError:
        found = import_module("flwr_ctma.engine.kernels.numpy")
    return found
