"""Optimizer state that a Flower client keeps between rounds."""

from collections import defaultdict
from collections.abc import Mapping
from logging import WARNING
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from flwr_ctma.compat import log, make_record
from flwr_ctma.messages import npy
from flwr_ctma.messages.arrays import to_array

__all__ = ["HasState", "load_state_record", "state_record"]


class HasState(Protocol):
    """An optimizer, as far as its state goes: torch's optimizers, for instance."""

    param_groups: list[dict[str, Any]]
    state: Any  # a mapping from parameters to tensors by name


def state_record(optimizer: HasState) -> ArrayRecord:
    """Write an optimizer's state as a record, for `context.state`.

    The numbers come back exactly; those in bfloat16 travel as float32. The record holds
    no hyper-parameters: a client constructs its optimizer anew in every round.

    Parameters
    ----------
    optimizer : Optimizer
        Any optimizer whose state is tensors, such as Mu2SGD, SGD with momentum or Adam.

    Returns
    -------
    ArrayRecord
        Keys such as `Mu2SGD.0.momentum`: class, index of the parameter, name.

    Examples
    --------
    >>> x = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9, dampening=0.9)
    >>> x.sum().backward()
    >>> optimizer.step()
    >>> record = state_record(optimizer)
    >>> list(record)
    ['SGD.0.momentum_buffer']
    >>> load_state_record(torch.optim.SGD([x], lr=0.1, momentum=0.9), record)
    True
    """
    kind = type(optimizer).__name__
    arrays = {}
    for index, x in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(x, {}).items():
            if isinstance(value, Tensor):
                kept = value.detach().cpu().to(_kept_as(value.dtype))
                arrays[f"{kind}.{index}.{name}"] = to_array(kept.numpy())
    return make_record(arrays)


def load_state_record(optimizer: HasState, record: ArrayRecord | None) -> bool:
    """Read an optimizer's state from a record; clear the state if it does not fit.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer, over parameters of the same order, shapes and dtypes as before.
    record : ArrayRecord | None
        The record that `state_record` returned, or None if there is none.

    Returns
    -------
    bool
        Whether the state was read. If not, the optimizer starts without state.
    """
    optimizer.state.clear()
    if record is None:
        return False
    try:
        optimizer.state.update(_read(optimizer, record))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        log(
            WARNING, "Optimizer starts without state, as its record is wrong: %s", error
        )
        return False
    return True


def _kept_as(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in a record: NumPy, and so Flower, has no bfloat16."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _parameters(optimizer: HasState) -> list[Tensor]:
    return [x for group in optimizer.param_groups for x in group["params"]]


def _read(
    optimizer: HasState, record: Mapping[str, Array]
) -> dict[Tensor, dict[str, Tensor]]:
    parameters = _parameters(optimizer)
    state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
    for key, array in record.items():
        kind, index, name = key.split(".", 2)
        like = parameters[int(index)]
        if kind != type(optimizer).__name__:
            raise ValueError(f"{key} belongs to an optimizer of class {kind}")
        _, shape, flat = npy.view(array.data)
        value = torch.from_numpy(flat.copy()).view(shape)
        expected = (like.shape, _kept_as(like.dtype))
        if value.dim() and (value.shape, value.dtype) != expected:
            raise ValueError(f"{key} is {value.dtype} of shape {tuple(value.shape)}")
        if not np.isfinite(flat).all():
            raise ValueError(f"{key} is not finite")
        # Counts stay on the CPU, where torch's optimizers keep them.
        vector = value.shape == like.shape and name not in ("step", "momentum_step")
        state[like][name] = value.to(like) if vector else value
    if len({frozenset(names) for names in state.values()}) > 1:
        raise ValueError("some of its arrays are missing")
    return dict(state)
