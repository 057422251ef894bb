"""The state of a strategy as plain data: what a restart or a rollback must restore.

The state is what the strategy's `state_dict` returns, or else all attributes that are
plain data. Functions, loggers and other values that cannot change are settings. An
attribute that is neither is an error that names it.
"""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import PurePath
from types import ModuleType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from flwr_ctma.errors import parameter_error
from flwr_ctma.tracking.checkpoint import is_plain

__all__ = [
    "attributes",
    "changes",
    "plain_attributes",
    "restore",
    "set_attributes",
    "state_of",
]

# Attributes of the wrappers themselves, and the strategy that is a layer of its own.
_NO_STATE = frozenset({"strategy", "_run", "_is_constructed"})


def state_of(strategy: Any) -> dict[str, Any]:
    """Return the state of one strategy, without that of the strategy inside it.

    Raises
    ------
    ValueError
        For an attribute that is neither plain data nor a setting.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAdam
    >>> strategy = FedAdam()
    >>> strategy.m_t = {"w": np.ones(2)}
    >>> state_of(strategy)["m_t"], state_of(strategy)["eta"]
    ({'w': array([1., 1.])}, 0.1)
    """
    if hasattr(strategy, "state_dict"):
        return dict(strategy.state_dict())
    return plain_attributes(strategy)


def restore(strategy: Any, state: Mapping[str, Any], exact: bool = False) -> None:
    """Restore the state that `state_of` or `changes` returned.

    Parameters
    ----------
    strategy : Strategy
    state : mapping
    exact : bool (default: False)
        Whether attributes that the state lacks are removed.
    """
    if hasattr(strategy, "load_state_dict"):
        strategy.load_state_dict(state)
        return
    if exact:
        for name in plain_attributes(strategy).keys() - state.keys():
            del vars(strategy)[name]
    set_attributes(strategy, state)


def plain_attributes(
    strategy: Any, begun: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return all attributes that are plain data.

    Parameters
    ----------
    strategy : Strategy
    begun : mapping | None (default: None)
        The attributes when the run began: a setting must be the same object still.
    """
    state = {}
    for name, value in vars(strategy).items():
        if name in _NO_STATE and (name != "strategy" or isinstance(value, Strategy)):
            continue
        if is_plain(value):
            state[name] = value
        elif not _is_setting(value) or (
            begun is not None and begun.get(name) is not value
        ):
            raise parameter_error(
                f"{type(strategy).__name__}.{name}",
                "plain data (numbers, text, bytes, arrays, records, containers of "
                "these), or a function that stays the same",
                type(value).__name__,
                "Give the strategy `state_dict` and `load_state_dict` that save and "
                "restore its state.",
            )
    return state


def attributes(strategy: Any) -> dict[str, Any]:
    """Return the attributes of a strategy, those that are plain data as copies."""
    return {
        name: copy.deepcopy(value) if is_plain(value) else value
        for name, value in vars(strategy).items()
        if name not in _NO_STATE
    }


def changes(strategy: Any, begun: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of one strategy, of plain attributes those that have changed.

    An attribute that is as it was when the run began is a setting: a resumed run may
    be given another.
    """
    if hasattr(strategy, "state_dict"):
        return dict(strategy.state_dict())
    return {
        name: value
        for name, value in plain_attributes(strategy, begun).items()
        if name not in begun or not _same(value, begun[name])
    }


def set_attributes(strategy: Any, state: Mapping[str, Any]) -> None:
    """Set attributes of a strategy."""
    vars(strategy).update(state)


def _same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal, in type and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return bool(alike and a.tobytes() == b.tobytes())
    if isinstance(a, Array | ArrayRecord):
        return bool(a == b)
    if isinstance(a, Mapping):
        return [*a] == [*b] and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.random.Generator):
        return bool(a.bit_generator.state == b.bit_generator.state)
    if hasattr(a, "getstate"):
        return bool(a.getstate() == b.getstate())
    return bool(a == b)


def _is_setting(value: Any) -> bool:
    """Whether a value that is no plain data cannot change while a run goes on."""
    if isinstance(value, ModuleType | logging.Logger | PurePath | partial | type):
        return True
    if hasattr(value, "state_dict") or hasattr(value, "__array__"):
        return False  # a torch module, an optimizer, a tensor
    hashed: Any = type(value).__hash__
    return callable(value) or hashed not in (None, object.__hash__)
