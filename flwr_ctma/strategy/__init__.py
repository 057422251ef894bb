"""Flower strategies that hold against Byzantine clients."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr_ctma.strategy.anytime import AnyTimeSGD as AnyTimeSGD
    from flwr_ctma.strategy.asynchronous import (
        AsyncRobustStrategy as AsyncRobustStrategy,
    )
    from flwr_ctma.strategy.attacked import AttackedStrategy as AttackedStrategy
    from flwr_ctma.strategy.checkpointed import Checkpointed as Checkpointed
    from flwr_ctma.strategy.healthy import Healthy as Healthy
    from flwr_ctma.strategy.observed import Observed as Observed
    from flwr_ctma.strategy.ondisk import OnDiskGrid as OnDiskGrid
    from flwr_ctma.strategy.patience import Patience as Patience
    from flwr_ctma.strategy.patience import PatientGrid as PatientGrid
    from flwr_ctma.strategy.robust import RobustStrategy as RobustStrategy

_HOMES = {
    "AnyTimeSGD": "anytime",
    "AsyncRobustStrategy": "asynchronous",
    "AttackedStrategy": "attacked",
    "Checkpointed": "checkpointed",
    "Healthy": "healthy",
    "Observed": "observed",
    "OnDiskGrid": "ondisk",
    "Patience": "patience",
    "PatientGrid": "patience",
    "RobustStrategy": "robust",
}

__all__ = [
    "AnyTimeSGD",
    "AsyncRobustStrategy",
    "AttackedStrategy",
    "Checkpointed",
    "Healthy",
    "Observed",
    "OnDiskGrid",
    "Patience",
    "PatientGrid",
    "RobustStrategy",
]


def __getattr__(name: str) -> Any:
    """Import a strategy when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
