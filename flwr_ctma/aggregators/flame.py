"""FLAME's filter: the majority that points one way, clipped to the median norm."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_ctma.aggregators.base import Aggregator, Budget, Combination
from flwr_ctma.aggregators.clipping import norms, weighted_quantile
from flwr_ctma.engine.stack import Float64
from flwr_ctma.engine.updates import Updates

__all__ = ["FLAME"]


@dataclass(frozen=True)
class FLAME(Aggregator, name="flame"):
    """FLAME without noise: the mean of a majority in cosine, clipped; needs no f.

    Rows are linked in the order of their cosine distance 1 − cos(x_i, x_j) until more
    than half of them hang together. The result is the mean of these rows, clipped to
    the (lower) median norm of all rows.

    The paper clusters with HDBSCAN and a least cluster size of n/2 + 1, which allows
    one cluster: the same majority, to which rows of similar density may be added. It
    also adds Gaussian noise of a standard deviation in proportion to the median norm,
    which this rule does not. Rows have no weights. No κ is known: Byzantine rows near
    the honest directions may be linked first.

    References
    ----------
    Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security
    2022, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[2.0, 0.0], [2.0, 0.2], [2.0, -0.2], [-9.0, 0.0], [0.0, 9.0]])
    >>> FLAME()(x, f=2).round(3)
    array([2., 0.])
    """

    def _point(self, rows: Updates, budget: Budget) -> Combination:
        lengths = norms(rows)
        divisors = np.where(lengths > 0, lengths, 1.0)
        kept = _majority(1 - rows.gram() / np.outer(divisors, divisors))
        middle = weighted_quantile(lengths, budget.shares, 0.5)
        scale = np.minimum(1.0, middle / divisors)
        return Combination(rows.to_stack_coefficients(kept * scale / kept.sum()))


def _majority(apart: Float64) -> Any:
    """Return the first component of more than half of the rows, by single linkage."""
    n = len(apart)
    component = np.arange(n)
    first, second = np.triu_indices(n, 1)
    between = apart[first, second]
    joined, last = np.ones(n, dtype=bool), np.inf
    for pair in np.argsort(between, kind="stable"):
        if between[pair] > last:
            break
        a, b = component[first[pair]], component[second[pair]]
        if a == b:
            continue
        component[component == b] = a
        if 2 * np.count_nonzero(component == a) > n:
            # Pairs at the same distance, up to rounding, are linked as well.
            joined, last = component == a, min(last, between[pair] + 1e-12)
    return joined
