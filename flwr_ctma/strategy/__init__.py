"""Flower strategies that hold against Byzantine clients."""

from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.strategy.anytime import AnyTimeSGD
from flwr_ctma.strategy.asynchronous.robust import (
    AsyncRobustStrategy as AsyncRobustStrategy,
)
from flwr_ctma.strategy.grace_period import GracePeriod, GracePeriodGrid
from flwr_ctma.strategy.on_disk import OnDiskGrid
from flwr_ctma.strategy.robust import RobustStrategy
from flwr_ctma.strategy.wrappers.attacked import AttackedStrategy
from flwr_ctma.strategy.wrappers.audited import Audited
from flwr_ctma.strategy.wrappers.checkpointed import Checkpointed
from flwr_ctma.strategy.wrappers.divergence import DivergenceGuard
from flwr_ctma.strategy.wrappers.observed import Observed

__all__ = [
    "AnyTimeSGD",
    "AsyncRobustStrategy",
    "AttackedStrategy",
    "Audited",
    "Checkpointed",
    "DivergenceGuard",
    "GracePeriod",
    "GracePeriodGrid",
    "Observed",
    "OnDiskGrid",
    "ReplyLimit",
    "RobustStrategy",
]
