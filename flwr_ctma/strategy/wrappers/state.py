"""The state of a strategy as plain data: what a restart or a rollback must restore.

The state is what the strategy's `state_dict` returns, or else all attributes that are
plain data, `__slots__` included. Functions, loggers and other values that cannot change
are settings. An attribute that is neither is an error that names it, and so is a
setting that holds data which change: a counter in a closure or in a callable object.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
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


_NEVER_CHANGE = (ModuleType, logging.Logger, PurePath, type)


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
    if _has_state_dict(strategy):
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
    if _has_state_dict(strategy):
        strategy.load_state_dict(state)
        return
    if exact:
        for name in plain_attributes(strategy).keys() - state.keys():
            object.__delattr__(strategy, name)
    set_attributes(strategy, state)


def plain_attributes(
    strategy: Any, begun: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return all attributes that are plain data.

    Parameters
    ----------
    strategy : Strategy
    begun : mapping | None (default: None)
        The attributes when the run began: a setting must be the same object still,
        and hold the same data.
    """
    state = {}
    for name, value in _all_attributes(strategy).items():
        if name in _NO_STATE and (name != "strategy" or isinstance(value, Strategy)):
            continue
        if is_plain(value):
            state[name] = value
        elif not _is_setting(value) or (
            begun is not None and not _is_unchanged(value, begun.get(name))
        ):
            raise parameter_error(
                f"{type(strategy).__name__}.{name}",
                "plain data (numbers, text, bytes, arrays, records, containers of "
                "these), or a function that stays the same and holds nothing that "
                "changes",
                type(value).__name__,
                "Give the strategy `state_dict` and `load_state_dict` that save and "
                "restore its state.",
            )
    return state


def attributes(strategy: Any) -> dict[str, Any]:
    """Return copies of plain attributes, and settings with copies of their data."""
    return {
        name: copy.deepcopy(value) if is_plain(value) else _Setting(value, _held(value))
        for name, value in _all_attributes(strategy).items()
        if name not in _NO_STATE
    }


def changes(strategy: Any, begun: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of one strategy, of plain attributes those that have changed.

    An attribute that is as it was when the run began is a setting: a resumed run may
    be given another.
    """
    if _has_state_dict(strategy):
        return dict(strategy.state_dict())
    return {
        name: value
        for name, value in plain_attributes(strategy, begun).items()
        if name not in begun or not _same(value, begun[name])
    }


def set_attributes(strategy: Any, state: Mapping[str, Any]) -> None:
    """Set attributes of a strategy, past any `__setattr__` of its own."""
    for name, value in state.items():
        object.__setattr__(strategy, name, value)


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
    return bool(a == b or (a != a and b != b))  # NaN is the same as NaN


@dataclass(frozen=True, eq=False)
class _Setting:
    """A value that is no plain data, and the plain data that it held."""

    value: Any
    held: Any


def _is_unchanged(value: Any, begun: Any) -> bool:
    return (
        isinstance(begun, _Setting)
        and begun.value is value
        and _same(begun.held, _held(value))
    )


# How deep functions and objects are followed: a method of an object that a closure of
# a `partial` holds. Objects may hold each other in circles.
_DEPTH = 4


def _held(value: Any, depth: int = _DEPTH) -> Any:
    """Return a copy of the plain data that a function or an object holds."""
    if is_plain(value):
        return copy.deepcopy(value)
    if depth == 0 or isinstance(value, (*_NEVER_CHANGE, Strategy)):
        return None
    return {name: _held(part, depth - 1) for name, part in _parts(value).items()}


def _parts(value: Any) -> dict[str, Any]:
    """Return the objects that a function or an object holds, by name."""
    parts = dict(getattr(value, "__dict__", {}))
    if isinstance(value, MethodType):
        return {"function": value.__func__, "self": value.__self__}
    if isinstance(value, partial):
        parts |= {"function": value.func, **value.keywords}
        parts |= {str(i): argument for i, argument in enumerate(value.args)}
    if isinstance(value, FunctionType) and value.__closure__:
        for name, cell in zip(
            value.__code__.co_freevars, value.__closure__, strict=True
        ):
            try:
                parts[name] = cell.cell_contents
            except ValueError:  # a variable without a value yet
                parts[name] = None
    return parts


def _all_attributes(strategy: Any) -> dict[str, Any]:
    """Return the attributes of a strategy, those in `__slots__` included."""
    slots = [
        name
        for kind in type(strategy).__mro__
        for name, member in vars(kind).items()
        if isinstance(member, MemberDescriptorType)
    ]
    return {
        **{name: getattr(strategy, name) for name in slots if hasattr(strategy, name)},
        **vars(strategy),
    }


def _has_state_dict(strategy: Any) -> bool:
    """Whether a strategy says itself what its state is.

    Its class must: a `__getattr__` of one's own may lead to the strategy inside.
    """
    return hasattr(type(strategy), "state_dict")


def _is_setting(value: Any) -> bool:
    """Whether a value that is no plain data cannot change while a run goes on."""
    if isinstance(value, (*_NEVER_CHANGE, partial)):
        return True
    if hasattr(value, "state_dict") or hasattr(value, "__array__"):
        return False  # a torch module, an optimizer, a tensor
    hashed: Any = type(value).__hash__
    return callable(value) or hashed not in (None, object.__hash__)
