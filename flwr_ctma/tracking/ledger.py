"""Who misbehaves: what each node did over the rounds, and how suspicious that is."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flwr_ctma.errors import parameter_error

__all__ = ["Ledger", "Record"]


@dataclass
class Record:
    """What a node did.

    Attributes
    ----------
    asked : int
        Messages it was sent.
    missing : int
        Messages it did not answer, or with an error.
    rejected : Counter[str]
        Rejected replies by reason.
    trimmed : int
        Good replies that counted nothing.
    ranked : int
        T, replies with a rank: good ones, and rejected ones, which count as farthest.
    height : float
        Σ u_t over these; u_t in [0, 1] says how far out the reply was.
    depth : float
        Σ v_t; v_t in [0, 1] says how near to the aggregate it was.
    """

    asked: int = 0
    missing: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    trimmed: int = 0
    ranked: int = 0
    height: float = 0.0
    depth: float = 0.0

    @property
    def suspicion(self) -> float:
        """-log₁₀ of the highest probability that an honest node comes to this."""
        return max(self.standing - math.log10(2), 0.0)

    @property
    def standing(self) -> float:
        """What orders nodes by suspicion, those below any suspicion as well."""
        excess = max(self.height, self.depth) - self.ranked / 2
        scale = 2 / math.log(10) / max(self.ranked, 1)
        return math.copysign(scale * excess**2, excess)


class Ledger:
    """A record of every node that was asked.

    In each round the n good replies are ranked by their distance to the aggregate. If
    honest nodes are alike, the rank of one among the n - f honest is uniform, and f
    liars raise its rank r among all by f at most. So, for an honest node,

        u = max(r - f - ½, 0) / (n - f),    v = max(n - f - r + ½, 0) / (n - f)

    have mean ½ or less, whatever the liars do and whatever was before. A node is far
    out if u is large, and too near if v is: colluders who all send the same draw the
    aggregate to themselves. By the inequality of Azuma and Hoeffding a mean ū over T
    rounds is reached with probability at most exp(-2 T (ū - ½)²), and one of ū and v̄
    with twice that. Minus the decimal logarithm is the suspicion: at most one honest
    node in 100 comes to 2.

    Nodes whose data differ are not alike, small i.i.d. partitions included: an honest
    one that is always far out, or always the most ordinary, is suspected too. And
    where nearly half may lie, ranks tell next to nothing of which half does.

    Examples
    --------
    >>> ledger, rng = Ledger(), np.random.default_rng(0)
    >>> for _ in range(30):
    ...     ledger.note([1, 2, 3, 4], distances=[*rng.normal(1, 0.1, 3), 7.0], f=1)
    >>> [round(ledger[node].suspicion, 1) for node in (1, 2, 3, 4)]
    [0.0, 0.0, 0.0, 2.6]
    """

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}

    def __getitem__(self, node: int) -> Record:
        """Give the record of a node; an empty one if it was never asked."""
        return self._records.get(node, Record())

    def note(
        self,
        accepted: Sequence[int],
        *,
        distances: ArrayLike | None = None,
        trimmed: Iterable[int] = (),
        f: int = 0,
        rejected: Iterable[tuple[int, str]] = (),
        missing: Iterable[int] = (),
    ) -> None:
        """Enter what came of a round.

        Parameters
        ----------
        accepted : sequence of n node ids
            Whose replies were good.
        distances : n floats, optional
            ‖update of the node - aggregate‖; none if nothing was aggregated.
        trimmed : node ids
            Who of them counted nothing.
        f : int
            How many of them may be malicious.
        rejected : (node id, reason) pairs
        missing : node ids
        """
        for node in accepted:
            self._of(node).asked += 1
        if distances is not None:
            n, ranks = len(accepted), _ranks(np.asarray(distances))
            for node, rank in zip(accepted, ranks, strict=True):
                record = self._of(node)
                record.ranked += 1
                record.height += max(rank - f - 0.5, 0.0) / (n - f)
                record.depth += max(n - f - rank + 0.5, 0.0) / (n - f)
        for node in trimmed:
            self._of(node).trimmed += 1
        for node, reason in rejected:
            record = self._of(node)
            record.asked += 1
            record.rejected[reason] += 1
            record.ranked += 1
            record.height += 1.0
        for node in missing:
            record = self._of(node)
            record.asked += 1
            record.missing += 1

    def _of(self, node: int) -> Record:
        return self._records.setdefault(node, Record())

    def violators(self, times: int) -> list[int]:
        """Give the nodes with so many rejected replies or more, the most first.

        Examples
        --------
        >>> ledger = Ledger()
        >>> for _ in range(2):
        ...     ledger.note([1], rejected=[(2, "shape")])
        >>> ledger.violators(2), ledger.violators(3)
        ([2], [])
        """
        counts = {n: record.rejected.total() for n, record in self._records.items()}
        found = [node for node, count in counts.items() if count >= times]
        return sorted(found, key=lambda node: -counts[node])

    def auc(self, malicious: Collection[int]) -> float | None:
        """Say how well the order of suspicion tells malicious nodes that are known.

        Returns
        -------
        float or None
            How likely a malicious node comes before an honest one in `to_rows`, ties
            counting half: 1 if all of them do, ½ for guessing. None if there are none
            of either.

        Examples
        --------
        >>> ledger = Ledger()
        >>> ledger.note([1, 2, 3], distances=[0.1, 0.3, 0.4], rejected=[(4, "shape")])
        >>> ledger.auc({4}), ledger.auc({1, 2}), ledger.auc({2})
        (1.0, 0.125, 0.0)
        """
        scores = {n: record.standing for n, record in self._records.items()}
        high = np.array([score for n, score in scores.items() if n in malicious])
        low = np.array([score for n, score in scores.items() if n not in malicious])
        if not len(high) or not len(low):
            return None
        return float(np.mean(np.sign(high[:, None] - low) + 1) / 2)

    def suspects(self, confidence: float = 0.99) -> list[int]:
        """Give the nodes with a record that an honest one is unlikely to have.

        With this confidence no honest one of all the nodes is among them.

        Raises
        ------
        ValueError
            If the confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise parameter_error(
                "confidence", "between 0 and 1, without them", confidence
            )
        limit = math.log10(max(len(self._records), 1) / (1 - confidence))
        return [
            node for node, record in self._records.items() if record.suspicion >= limit
        ]

    def to_rows(self) -> list[dict[str, Any]]:
        """Give a row of plain values for each node, the most suspicious first."""
        rows = [
            {
                "node": node,
                **vars(record),
                "rejected": dict(record.rejected),
                "suspicion": record.suspicion,
            }
            for node, record in self._records.items()
        ]
        return sorted(rows, key=lambda row: -self[row["node"]].standing)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "Ledger":
        """Give the ledger that `to_rows` wrote."""
        ledger = cls()
        for row in rows:
            known = {k: v for k, v in row.items() if k not in ("node", "suspicion")}
            known["rejected"] = Counter(row["rejected"])
            ledger._records[row["node"]] = Record(**known)
        return ledger


def _ranks(distances: NDArray[Any]) -> list[float]:
    """Rank distances from 1 to n; equal ones share their ranks."""
    ordered = np.sort(distances)
    below = np.searchsorted(ordered, distances, side="left")
    upto = np.searchsorted(ordered, distances, side="right")
    return [float(rank) for rank in (below + upto + 1) / 2]
