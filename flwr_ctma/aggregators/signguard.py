"""SignGuard: rows of ordinary length whose signs are those of most rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.clipping import norms, weighted_quantile
from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.kernels.protocol import Primitives
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["SignGuard"]

_STEPS = 100


@dataclass(frozen=True)
class SignGuard(Aggregator, name="signguard"):
    """SignGuard: the mean of rows of ordinary norm and sign statistics; needs no f.

    With M the (lower) median norm, rows with shortest ≤ ‖x_i‖/M ≤ longest pass the
    first filter. For the second, the shares of positive, zero and negative coordinates
    of each row are clustered by mean shift with a flat kernel, as scikit-learn does,
    and the largest cluster passes. The result is the mean of the rows that pass both,
    clipped to the norm M, and 0 if there are none.

    Signs are counted in all coordinates; the paper samples a tenth of them. That takes
    two passes over the rows. Rows have no weights. No κ is known: rows with honest
    signs and norms pass, wherever they are.

    Parameters
    ----------
    shortest : float (default: 0.1)
    longest : float (default: 3.0)

    Raises
    ------
    ValueError
        If not 0 ≤ shortest ≤ 1 ≤ longest.

    References
    ----------
    Xu et al., "Byzantine-robust Federated Learning through Collaborative Malicious
    Gradient Filtering", ICDCS 2022, Algorithm 2, without its similarity feature.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [-2.0, -1.0]])
    >>> SignGuard()(x, f=1).round(3)
    array([1.527, 1.527])
    """

    shortest: float = 0.1
    longest: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shortest <= 1:
            raise parameter_error("shortest", "between 0 and 1", self.shortest)
        if not self.longest >= 1:
            raise parameter_error("longest", "at least 1", self.longest)

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        lengths = norms(rows)
        middle = weighted_quantile(lengths, budget.shares, 0.5)
        ordinary = (lengths >= self.shortest * middle) & (
            lengths <= self.longest * middle
        )
        positive, negative = (
            rows.stack.shares(_Signed(sign), rows.mixing) for sign in (1, -1)
        )
        signs = np.stack([positive, 1 - positive - negative, negative], axis=1)
        kept = ordinary & _largest_cluster(signs)
        scale = np.minimum(1.0, middle / np.where(lengths > 0, lengths, 1.0))
        coefficients = kept * scale / max(kept.sum(), 1)
        return Combination(rows.to_stack_coefficients(coefficients))


@dataclass(frozen=True)
class _Signed:
    """Kernel that marks the values of a sign."""

    sign: int

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the number of marked values in each column."""
        return (self.sign * block > 0).sum(0)

    def weights(self, block: Array) -> Float64:
        """Return 1 for each value of the sign, else 0."""
        return (self.sign * block > 0).astype(np.float64)


def _largest_cluster(points: Float64) -> Any:
    """Return which points are in the largest cluster of a flat-kernel mean shift."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    neighbours = max(1, len(points) // 2)
    width = np.sort(apart, axis=1)[:, neighbours - 1].mean() + 1e-9
    modes = points
    for _ in range(_STEPS):
        near = np.linalg.norm(modes[:, None] - points[None], axis=2) <= width
        moved = near @ points / near.sum(axis=1, keepdims=True)
        done = np.abs(moved - modes).max() <= 1e-3 * width
        modes = moved
        if done:
            break
    near = np.linalg.norm(modes[:, None] - points[None], axis=2) <= width
    centres: list[int] = []
    for mode in np.argsort(-near.sum(axis=1), kind="stable"):
        if all(np.linalg.norm(modes[mode] - modes[c]) > width for c in centres):
            centres.append(int(mode))
    to_centre = np.linalg.norm(points[:, None] - modes[centres][None], axis=2)
    cluster = np.argmin(to_centre, axis=1)
    return cluster == np.argmax(np.bincount(cluster))
