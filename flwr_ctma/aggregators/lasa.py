"""LASA: in each layer, the sparse rows of ordinary norm and ordinary signs."""

from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar, NamedTuple

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, CoordinateWise, Point
from flwr_ctma.aggregators.clipping import weighted_quantile
from flwr_ctma.aggregators.points import concatenated
from flwr_ctma.engine import threads
from flwr_ctma.engine.buffers import Array
from flwr_ctma.engine.kernels.protocol import Primitives
from flwr_ctma.engine.stack import Float64, Vector
from flwr_ctma.engine.updates import Updates
from flwr_ctma.errors import parameter_error

__all__ = ["LASA"]

# Columns that are computed at a time.
_WIDTH = 2**15
# Numbers of a row that are sorted to find where a rank is, about.
_SAMPLE = 2**13
# Values whose distance exceeds a limit by less, relative to them, are within it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class LASA(Aggregator, name="lasa"):
    r"""Layer-adaptive sparsified aggregation: a filter in each layer; needs no f.

    Rows are clipped to the (lower) median norm, and of the d numbers of each the ⌊s d⌋
    smallest magnitudes become 0. A layer is an array of the model. In each, row i has
    the norm m_i and the purity ρ_i of its numbers that are left::

        ρ_i = ½ (1 + Σ_j sgn(x_ij) / Σ_j |sgn(x_ij)|),    ½ if all are 0

    and counts if both are near the medians::

        |m_i − median(m)| ≤ λ_n · std(m),    |ρ_i − median(ρ)| ≤ λ_s · std(ρ)

    The result in the layer is the mean of the clipped, sparse rows that count, or of
    all if none does.

    A matrix or a tensor is one layer. Rows are read one by one, whole; with the backend
    "ray" they come back to this process. Rows have no weights, and clients count in
    some layers and not in others, so that no memory can weigh them. No κ is known: rows
    of honest norms and signs count, wherever they are.

    Parameters
    ----------
    sparsity : float (default: 0.3)
        s.
    lambda_n : float (default: 1.0)
        λ_n, for the norms.
    lambda_s : float (default: 1.0)
        λ_s, for the signs.

    Raises
    ------
    ValueError
        If not 0 ≤ sparsity < 1, or a λ is not positive and finite.

    Notes
    -----
    The authors' code leaves arrays of one dimension, such as biases, dense. A row whose
    layer is all 0 has no purity there, and the code then filters nobody in the layer;
    here its purity is ½. Attacks that search against the rule in use see the model as
    one layer.

    References
    ----------
    Xu, Zhang and Hu, "Achieving Byzantine-Resilient Federated Learning via
    Layer-Adaptive Sparsified Model Aggregation", WACV 2025, and its code.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[2.0, 1.0], [1.0, 2.0], [2.0, 2.0], [-2.0, -2.0]])
    >>> LASA(sparsity=0.0)(x, f=1).round(3)
    array([1.527, 1.527])
    """

    by_layer: ClassVar[bool] = True

    sparsity: float = 0.3
    lambda_n: float = 1.0
    lambda_s: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise parameter_error("sparsity", "at least 0 and below 1", self.sparsity)
        for name in ("lambda_n", "lambda_s"):
            if not 0 < getattr(self, name) < np.inf:
                raise parameter_error(name, "above 0 and finite", getattr(self, name))

    def _point(self, rows: Updates, budget: Budget) -> Point:
        found = _measure(rows, self.sparsity)
        middle = weighted_quantile(found.lengths, budget.shares, 0.5)
        clip = (
            middle / np.maximum(found.lengths, middle) if middle else found.lengths == 0
        )
        layers, points = rows.split(), []
        for k, layer in enumerate(layers):
            kept = _ordinary(clip * found.norms[:, k], self.lambda_n)
            kept &= _ordinary(found.purities[:, k], self.lambda_s)
            if not kept.any():
                kept = ~kept
            kernel = _SparseSum(found.thresholds, kept * clip / kept.sum())
            points.append(CoordinateWise(kernel, layer))
        return concatenated(layers, points)


class _Measures(NamedTuple):
    """Measures of n rows; of their sparse form in each layer."""

    lengths: Float64
    thresholds: Float64
    norms: Float64
    purities: Float64


def _measure(rows: Updates, sparsity: float) -> _Measures:
    """Read each row once, whole: its threshold depends on all of its numbers."""
    lengths, thresholds, norms, purities = [], [], [], []
    for unit in np.eye(rows.n):
        row = [_on_host(layer) for layer in rows.combine(unit)]
        least = _threshold(row, sparsity)
        sums = _sums(row, least)
        whole, sparse, positive, negative = sums.T
        signed = np.maximum(positive + negative, 1.0)
        lengths.append(np.sqrt(whole.sum()))
        thresholds.append(least)
        norms.append(np.sqrt(sparse))
        purities.append((1 + (positive - negative) / signed) / 2)
    if not np.isfinite(lengths).all():
        rows.stack.check_finite()
    return _Measures(*map(np.array, (lengths, thresholds, norms, purities)))


def _threshold(row: Vector, sparsity: float) -> float:
    """Return the smallest magnitude that is left, less what rounding may take of it.

    A row that is a sum of others is computed again, in blocks.
    """
    size = sum(map(len, row))
    dropped = min(floor(round(sparsity * size, 9)), size - 1)
    if dropped < 1:
        return 0.0
    coarsest = min((layer.dtype for layer in row), key=lambda dtype: dtype.itemsize)
    least = coarsest.type(_magnitude_of_rank(row, dropped))
    return float(least * coarsest.type(1 - 8 * np.finfo(coarsest).eps))


def _magnitude_of_rank(row: Vector, rank: int) -> Any:
    """Return the magnitude of a rank, from 0 upwards.

    A sample gives two magnitudes that most often have it between them, with few others.
    """
    size = sum(map(len, row))
    step = 1 + size // _SAMPLE
    sample = np.sort(np.abs(np.concatenate([layer[::step] for layer in row])))
    place, spread = rank * len(sample) // size, int(1.5 * len(sample) ** 0.5)
    low = sample[max(0, place - spread)]
    high = sample[min(len(sample) - 1, place + spread)]

    def part(span: tuple[int, int]) -> tuple[int, Array]:
        k, a = span
        magnitudes = np.abs(row[k][a : a + _WIDTH])
        between = magnitudes >= low
        below = len(magnitudes) - int(np.count_nonzero(between))
        between &= magnitudes <= high
        return below, magnitudes[between]

    found = threads.run(part, _spans(row))
    between = np.concatenate([part for _, part in found])
    left = rank - sum(below for below, _ in found)
    if not 0 <= left < len(between):
        between, left = np.concatenate(row), rank
        np.abs(between, out=between)
    between.partition(left)
    return between[left]


def _sums(row: Vector, least: float) -> Float64:
    """Return for each layer ‖x‖², and of the sparse x: ‖x‖², positives, negatives."""

    def part(span: tuple[int, int]) -> Float64:
        k, a = span
        x = row[k][a : a + _WIDTH].astype(np.float64)
        whole = x @ x
        x *= _left(x, least)
        signs = np.count_nonzero(x > 0), np.count_nonzero(x < 0)
        return np.array([whole, x @ x, *signs])

    spans = _spans(row)
    sums = np.zeros((len(row), 4))
    for (k, _), found in zip(spans, threads.run(part, spans), strict=True):
        sums[k] += found
    return sums


def _spans(row: Vector) -> list[tuple[int, int]]:
    return [(k, a) for k, x in enumerate(row) for a in range(0, len(x), _WIDTH)]


def _left(block: Array, least: Any) -> Array:
    """Return 1 for each number that reaches the threshold, else 0, in its dtype."""
    left: Array = np.abs(block)
    # NumPy writes floats at once; a product with booleans converts them in small parts.
    np.greater_equal(left, least, out=left, casting="unsafe")
    return left


def _ordinary(values: Float64, radius: float) -> Any:
    """Return which values are within so many standard deviations of the median."""
    apart = np.abs(values - np.median(values))
    return apart <= radius * values.std() + _ROUNDING * np.abs(values).max()


def _on_host(layer: Any) -> Array:
    return layer if isinstance(layer, np.ndarray) else np.asarray(layer.cpu().numpy())


@dataclass(frozen=True, eq=False)
class _SparseSum:
    """Kernel: the weighted sum of the numbers that reach their row's threshold."""

    thresholds: Float64
    coefficients: Float64

    def value(self, block: Any, primitives: Primitives, squares: Any = None) -> Any:
        """Return the sum in each column."""
        least = self.thresholds[:, None]
        if isinstance(block, np.ndarray):
            left: Any = _left(block, least.astype(block.dtype))
        else:
            left = (abs(block) >= block.new_tensor(least)).to(block.dtype)
        left *= block
        total = primitives.weighted_sum(left, self.coefficients)
        if squares is not None:
            squares += primitives.squares_apart(block, total)
        return total

    def weights(self, block: Array) -> Float64:
        """Return the coefficient of each number that is left, else 0."""
        left = _left(block, self.thresholds[:, None].astype(block.dtype))
        return self.coefficients[:, None] * left
