"""MinMax and MinSum: no farther from the honest than these are from each other."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Omniscient
from flwr_ctma.attacks.knowledge import Knowledge, Rows
from flwr_ctma.engine.stack import squared_distances
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.errors import parameter_error

__all__ = ["MinMax", "MinSum"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Spread(Omniscient):
    """All colluders send μ + γ·p with the largest γ that the honest spread allows."""

    direction: str = "std"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.direction not in ("std", "unit", "sign"):
            raise parameter_error("direction", "one of std, unit, sign", self.direction)

    @abstractmethod
    def factor(self, spread: "_Geometry") -> float:
        """Return the largest γ."""

    def craft(self, known: Knowledge) -> Rows:
        """μ + γ·p."""
        if self.direction == "std":
            p = -known.std
        else:
            p = -known.mean if self.direction == "unit" else -np.sign(known.mean)
        geometry = _Geometry.of(known.honest, known.honest_weights, p)
        return known.mean + self.factor(geometry) * p


@dataclass(frozen=True)
class _Geometry:
    """Inner products of the honest rows, about their mean μ, and of a direction p."""

    weights: Float64  # (h,)
    apart: Float64  # ‖x_i − x_j‖², (h, h)
    off: Float64  # ‖x_i − μ‖², (h,)
    along: Float64  # ⟨x_i − μ, p⟩, (h,)
    length: float  # ‖p‖²

    @staticmethod
    def of(honest: Rows, weights: Float64, direction: Rows) -> "_Geometry":
        h = len(honest)
        rows = Updates.of([Layer([*honest, direction])])
        centred = np.eye(h + 1)
        centred[:h, :h] -= weights / weights.sum()
        gram = rows.mix(centred).gram()
        apart = squared_distances(gram[:h, :h])
        norms = np.maximum(np.diag(gram), 0.0)
        return _Geometry(weights, apart, norms[:h], gram[:h, h], float(norms[h]))


@dataclass(frozen=True)
class MinMax(_Spread, name="minmax"):
    """All colluders send μ + γ·p, no farther from any honest row than two of them are.

    The largest γ with max_i ‖μ + γp − x_i‖ ≤ max_ij ‖x_i − x_j‖. Each i allows γ up to
    the larger root of a quadratic equation; γ is the smallest of these roots. (The
    authors and Blades approximate it by a search with an upper bound.)

    Parameters
    ----------
    direction : str (default: "std")
        p: −σ for "std", −μ for "unit", −sign(μ) for "sign". Its length does not matter.

    Raises
    ------
    ValueError
        If `direction` is another word.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, §IV-B, Eq. 7.

    Examples
    --------
    μ = 2, the honest updates are at most 2 apart, and 1 has this distance to 3:

    >>> MinMax()(np.array([[1.0], [2.0], [3.0]]), num_malicious=1).round(12)
    array([[1.]])
    """

    def factor(self, spread: _Geometry) -> float:
        """The smallest root: ‖p‖²γ² − 2⟨x_i − μ, p⟩γ + ‖x_i − μ‖² = max_ij ‖·‖²."""
        if spread.length == 0:
            return 0.0
        room = np.maximum(spread.apart.max() - spread.off, 0)
        b = spread.along
        roots = (b + np.sqrt(b**2 + spread.length * room)) / spread.length
        return float(roots.min())


@dataclass(frozen=True)
class MinSum(_Spread, name="minsum"):
    """All colluders send μ + γ·p, as near to all honest rows as one of these is.

    The largest γ with Σ_i ‖μ + γp − x_i‖² ≤ max_i Σ_j ‖x_i − x_j‖². The cross terms
    cancel, so γ² is the right side minus Σ_i ‖μ − x_i‖², divided by h‖p‖².

    Parameters
    ----------
    direction : str (default: "std")
        p, as for `MinMax`.

    Raises
    ------
    ValueError
        If `direction` is another word.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, §IV-B, Eq. 8.

    Examples
    --------
    μ = 2, Σ_i ‖μ − x_i‖² = 2, and the outermost row has 1² + 2² = 5: 3γ² = 5 − 2, so
    γ = 1.

    >>> MinSum()(np.array([[1.0], [2.0], [3.0]]), num_malicious=1).round(12)
    array([[1.]])
    """

    def factor(self, spread: _Geometry) -> float:
        """√((max_i Σ_j ‖x_i − x_j‖² − Σ_i ‖x_i − μ‖²) / (h‖p‖²))."""
        if spread.length == 0:
            return 0.0
        w = spread.weights
        room = (spread.apart @ w).max() - w @ spread.off
        return float(np.sqrt(max(room, 0.0) / (w.sum() * spread.length)))
