"""MinMax and MinSum: as far off as honest updates are from each other."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_ctma.attacks.base import Omniscient, Rows
from flwr_ctma.attacks.moments import deviation, mean
from flwr_ctma.engine.stack import squared_distances
from flwr_ctma.engine.updates import Layer, Updates
from flwr_ctma.errors import parameter_error

__all__ = ["MinMax", "MinSum"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class _Spread(Omniscient):
    """All colluders send μ + γ·p, with the largest γ that an honest spread allows."""

    direction: str = "std"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.direction not in ("std", "unit", "sign"):
            raise parameter_error("direction", "one of std, unit, sign", self.direction)

    @abstractmethod
    def factor(self, spread: "_Geometry") -> float:
        """Find the largest γ."""

    def forge(self, honest: Rows, weights: Float64, rng: np.random.Generator) -> Rows:
        """μ + γ·p."""
        w = weights[: len(honest)]
        centre = mean(honest, w)
        if self.direction == "std":
            p = -deviation(honest, w)
        else:
            p = -centre if self.direction == "unit" else -np.sign(centre)
        return centre + self.factor(_Geometry.of(honest, w, p)) * p


@dataclass(frozen=True)
class _Geometry:
    """Inner products of the honest rows about their mean μ, and of a direction p."""

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
class MinMax(_Spread):
    """All colluders send μ + γ·p, no farther from any honest row than two of them are.

    The largest γ with max_i ‖μ + γp − x_i‖ ≤ max_ij ‖x_i − x_j‖. Each i allows γ up to
    the larger root of a quadratic; the smallest of these is the answer, exactly. (The
    authors and Blades search for it, up to an upper bound.)

    Parameters
    ----------
    direction : str (default: "std")
        p: "std" is −σ, coordinate by coordinate, "unit" is −μ, "sign" is −sign(μ). Only
        its direction matters.

    Raises
    ------
    ValueError
        If there is no such direction.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, §IV-B, Eq. 7.

    Examples
    --------
    μ = 2 and the honest are at most 2 apart; 1 is as far from 3:

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
class MinSum(_Spread):
    """All colluders send μ + γ·p, in sum as near to the honest as one of them is.

    The largest γ with Σ_i ‖μ + γp − x_i‖² ≤ max_i Σ_j ‖x_i − x_j‖². The cross terms
    cancel, and γ² is what the sum has left, divided by h‖p‖².

    Parameters
    ----------
    direction : str (default: "std")
        p, as for `MinMax`.

    Raises
    ------
    ValueError
        If there is no such direction.

    References
    ----------
    Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, §IV-B, Eq. 8.

    Examples
    --------
    μ = 2, Σ_i ‖μ − x_i‖² = 2, and 1² + 2² = 5 from the outermost: 3γ² = 5 − 2 leads to
    2 − 1.

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
