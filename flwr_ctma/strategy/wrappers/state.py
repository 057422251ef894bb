"""What a strategy knows beside its settings: its state, as plain values."""

from typing import Any

import numpy as np
from flwr.app import ArrayRecord

__all__ = ["restore", "state_of"]


def state_of(strategy: Any) -> dict[str, Any]:
    """State of one strategy: what it says, or its attributes that hold arrays.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAdam
    >>> strategy = FedAdam()
    >>> strategy.m_t = {"w": np.ones(2)}
    >>> state_of(strategy)
    {'m_t': {'w': array([1., 1.])}}
    """
    if hasattr(strategy, "state_dict"):
        return dict(strategy.state_dict())
    return {k: v for k, v in vars(strategy).items() if _holds_arrays(v)}


def restore(strategy: Any, state: dict[str, Any]) -> None:
    """Go on from what `state_of` gave."""
    if hasattr(strategy, "load_state_dict"):
        strategy.load_state_dict(state)
    else:
        # Flower's have None where there are no arrays yet.
        since = dict.fromkeys(state_of(strategy).keys() - state.keys())
        vars(strategy).update({**since, **state})


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, np.ndarray) for item in value)
    return isinstance(value, ArrayRecord | np.ndarray)
