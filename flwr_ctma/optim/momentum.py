"""The corrected momentum of one client, in plain arrays: for clients without torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.optim.schedules import Fixed, Schedule

__all__ = ["Arrays", "CorrectedMomentum"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class CorrectedMomentum:
    """State of a μ²-SGD client: its momentum, the query point, and the step count.

    The exact method (Dahan & Levy, ICML 2024), one iteration a round: the client sends
    the momentum d_t, as the model x_t - d_t; `AnyTimeSGD` on the server takes the step.

    Parameters
    ----------
    count : int (default: 0)
        t: the number of momenta that this client has sent, not the server's rounds.
    point : Mapping[str, NDArray] (default: empty)
        Query point x_t: the model as the client last received it.
    vector : Mapping[str, NDArray] (default: empty)
        Momentum d_t, with the same names and shapes.

    Examples
    --------
    In a client, with `gradient_at(point)` the gradient of one batch at any point::

        momentum = CorrectedMomentum.read(context.state.get("momentum"))
        momentum = momentum.at(point, gradient_at)
        context.state["momentum"] = momentum.record()
        reply = {name: point[name] - momentum.vector[name] for name in point}

    >>> momentum = CorrectedMomentum().at({"x": np.array([4.0])}, lambda point: point)
    >>> momentum = momentum.at({"x": np.array([3.0])}, lambda point: point)
    >>> momentum.count, momentum.vector["x"]
    (2, array([3.]))
    """

    count: int = 0
    point: Arrays = field(default_factory=dict)
    vector: Arrays = field(default_factory=dict)

    def at(
        self,
        point: Arrays,
        gradient_at: Callable[[Arrays], Arrays],
        schedule: Schedule = Fixed(),  # noqa: B008, a frozen value
        clip: float | None = None,
    ) -> Self:
        """Return the momentum at the next query point.

        d_{t+1} = ∇f(x_{t+1}; z) + (1 - β_{t+1}) (d_t - ∇f(x_t; z)), both gradients of
        the same batch z. d_1 = ∇f(x_1; z), also if x_t has other names or shapes.

        Parameters
        ----------
        point : Mapping[str, NDArray]
            Query point x_{t+1}.
        gradient_at : Callable
            Gradient of one batch: the same batch and the same random numbers at every
            call.
        schedule : Schedule (default: Fixed())
            Source of β; the server uses α and γ.
        clip : float | None (default: None)
            Largest norm of either gradient over all arrays.

        Raises
        ------
        ValueError
            If `clip` is not positive.
        """
        if clip is not None and not clip > 0:
            raise parameter_error("clip", "positive or None", clip)
        if _shapes(self.point) != _shapes(point):
            return type(self)(1, point, _clipped(gradient_at(point), clip))
        keep = 1 - schedule(self.count + 1).storm_beta
        new = _clipped(gradient_at(point), clip)
        if keep > 0:
            old = _clipped(gradient_at(self.point), clip)
            new = {k: new[k] + keep * (self.vector[k] - old[k]) for k in new}
        return type(self)(self.count + 1, point, new)

    def record(self) -> ArrayRecord:
        """Write the state as a record for `context.state`, without loss."""
        arrays = {"count": np.array(self.count)}
        arrays |= {f"point.{name}": value for name, value in self.point.items()}
        arrays |= {f"vector.{name}": value for name, value in self.vector.items()}
        return ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()})

    @classmethod
    def read(cls, record: ArrayRecord | None) -> Self:
        """Read the state from a record; return an empty state if it does not fit."""
        if record is None:
            return cls()
        try:
            parts: dict[str, dict[str, NDArray[Any]]] = {"point": {}, "vector": {}}
            for key in record.keys() - {"count"}:
                part, name = key.split(".", 1)
                parts[part][name] = record[key].numpy()
                if not np.isfinite(parts[part][name]).all():
                    raise ValueError(f"{key} is not finite")
            if _shapes(parts["point"]) != _shapes(parts["vector"]):
                raise ValueError("momentum and query point differ in shape")
            return cls(int(record["count"].numpy()), **parts)
        except (KeyError, TypeError, ValueError) as error:
            log(
                WARNING, "Momentum starts without state: its record is wrong: %s", error
            )
            return cls()


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def _clipped(gradient: Arrays, clip: float | None) -> Arrays:
    if clip is None:
        return gradient
    norm = math.hypot(*(float(np.linalg.norm(g)) for g in gradient.values()))
    return (
        {name: g * (clip / norm) for name, g in gradient.items()}
        if norm > clip
        else gradient
    )
