"""Double momentum on the clients: a torch optimizer, its twin in NumPy, schedules."""

from typing import TYPE_CHECKING, Any

from flwr_ctma.optim.momentum import CorrectedMomentum

if TYPE_CHECKING:
    from flwr_ctma.optim.mu2sgd import Mu2SGD

__all__ = ["CorrectedMomentum", "Mu2SGD"]


def __getattr__(name: str) -> Any:
    """Import `Mu2SGD`, and torch with it, on first use."""
    if name != "Mu2SGD":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flwr_ctma.optim.mu2sgd import Mu2SGD

    return Mu2SGD
