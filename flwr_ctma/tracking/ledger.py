"""A record of every node over the rounds, and the evidence against it."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flwr_ctma.errors import parameter_error
from flwr_ctma.tracking.detectors import Observation
from flwr_ctma.tracking.evidence import FAULTS, PROOFS

__all__ = ["Ledger", "Record"]

_VARIANCE = 2 / 12  # twice that of a uniform number in [0, 1]
_PRIOR = 1.0  # ρ
_FAULTS = 3  # a node that breaks so often is a suspect


@dataclass
class Record:
    """The record of one node.

    Attributes
    ----------
    asked : int
        Messages sent to the node.
    missing : int
        Messages without a reply, or with an error as the reply.
    rejected : Counter[str]
        Rejected replies by reason.
    trimmed : int
        Accepted replies with weight 0 in the aggregate.
    ranked : int
        Accepted replies with a rank, and proofs and faults, which rank as farthest.
    height, depth : float
        Σ u_t and Σ v_t over the ranked replies, see `Ledger`.
    tested : int
        T, those of the ranked replies that count as evidence.
    tested_height, tested_depth : float
        Σ u_t and Σ v_t over these.
    """

    asked: int = 0
    missing: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    trimmed: int = 0
    ranked: int = 0
    height: float = 0.0
    depth: float = 0.0
    tested: int = 0
    tested_height: float = 0.0
    tested_depth: float = 0.0

    @property
    def proofs(self) -> int:
        """Number of replies that no honest client of the same app can send."""
        return sum(self.rejected[reason] for reason in PROOFS)

    @property
    def faults(self) -> int:
        """Number of replies that an honest client sends if something breaks on it."""
        return sum(self.rejected[reason] for reason in FAULTS)

    @property
    def suspicion(self) -> float:
        """Decimal logarithm of the evidence in the ranks, 0 or above."""
        far, near = (
            _log_evidence(total - self.tested / 2, self.tested * _VARIANCE)
            for total in (self.tested_height, self.tested_depth)
        )
        both = np.logaddexp(far, near) - math.log(2)
        return max(float(both) / math.log(10), 0.0)

    @property
    def standing(self) -> float:
        """A number that orders nodes by suspicion, also where there is no evidence."""
        excess = max(self.height, self.depth) - self.ranked / 2
        scale = 6 / math.log(10) / max(self.ranked, 1)
        return math.copysign(scale * excess**2, excess)

    def rank(self, height: float, depth: float, *, tested: bool) -> None:
        """Add the rank of a reply."""
        self.ranked += 1
        self.height += height
        self.depth += depth
        if tested:
            self.tested += 1
            self.tested_height += height
            self.tested_depth += depth


class Ledger:
    r"""A record of every node that was asked, with evidence against nodes.

    Rejections. A reply that no honest client of the same app can send, a proof
    (`flwr_ctma.tracking.evidence`), makes its sender a suspect at once. A fault, such
    as NaN, makes its sender a suspect the third time.

    Ranks. In each round the n accepted replies are ranked by their distance to a
    center: the nearest has rank 1. The rank r of a node gives::

        u = max(r − f − ½, 0) / (n − f)        large if the reply is far out
        v = max(n − f − r + ½, 0) / (n − f)    large if the reply is too near

    *Assumption.* The center is known before the round (`predictable`), and, given all
    earlier rounds, the replies of the honest nodes are exchangeable: the nodes draw
    alike data, and no node carries its own noise from round to round.

    *Theorem.* For an honest node let S = Σ u_t − T/2 and V = T/6, over its first T
    rounds, and ::

        E(S) = 2 √(ρ / (V + ρ)) · Φ(S / √(V + ρ)) · exp(S² / (2 (V + ρ))),    ρ = 1

    Whatever up to f malicious nodes send, also if they see all honest replies of the
    round: with probability 1 − α, ½ E(S_u) + ½ E(S_v) stays below 1/α in all rounds.

    *Proof.* Let R be the rank among the n − f honest replies. It is uniform, because
    the distances to a known center are exchangeable, and f liars raise it by 0 to f. So
    u ≤ (R − ½) / (n − f) =: U. This U is uniform on a grid that is symmetric about ½,
    and E exp(λ (U − ½)) = sinh(λ/2) / ((n − f) sinh(λ/2(n − f))) ≤ sinh(λ/2) / (λ/2)
    ≤ exp(λ²/24) ≤ exp(λ²/12). Hence exp(λS − λ²V/2) is a supermartingale for every
    λ ≥ 0, and so is its mean over the half-normal density of λ with variance 1/ρ, which
    is E(S). By symmetry the same holds for v, and for the mean of both. By Ville's
    inequality a non-negative supermartingale that starts at 1 ever reaches 1/α with
    probability α at most. With fewer than f liars u and v are stochastically smaller.
    Equal distances share their mean rank: by Jensen's inequality E exp(λu) is then no
    larger than with ties broken at random. ∎

    The suspicion of a node is log₁₀(½ E(S_u) + ½ E(S_v)): at most one honest node in
    100 ever comes to 2. V = T/12 would do. The factor of two is a margin for clients
    whose noise lasts for some rounds, as momentum makes it; it is no proof for them.

    Limits. The distance to the aggregate of the *same* round is no evidence: colluders
    who see the replies of the round pull the aggregate away from one honest node, and
    make that node the farthest in every round. The aggregate of the others without the
    node is no way out, as the colluders are among the others. Such distances only order
    the nodes. And nodes whose data differ, or whose momentum lasts, are not
    exchangeable: an honest one that is always far out, or always near, is suspected.

    Examples
    --------
    >>> ledger, rng = Ledger(), np.random.default_rng(0)
    >>> for _ in range(40):
    ...     distances = [*rng.normal(1, 0.1, 3), 7.0]
    ...     ledger.note([1, 2, 3, 4], distances=distances, predictable=True, f=1)
    >>> [round(ledger[node].suspicion, 1) for node in (1, 2, 3, 4)]
    [0.0, 0.0, 0.0, 4.6]
    >>> ledger.note([1, 2, 3], f=1, rejected=[(5, "header"), (6, "not-finite")])
    >>> ledger.suspects()
    [4, 5]

    References
    ----------
    Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic
    confidence sequences", Annals of Statistics 49 (2021), Proposition 5.
    """

    def __init__(self) -> None:
        self._records: dict[int, Record] = {}

    def __getitem__(self, node: int) -> Record:
        """Return the record of a node; an empty one if it was never asked."""
        return self._records.get(node, Record())

    def note(
        self,
        accepted: Sequence[int],
        *,
        distances: ArrayLike | None = None,
        predictable: bool = False,
        trimmed: Iterable[int] = (),
        f: int = 0,
        rejected: Iterable[tuple[int, str]] = (),
        missing: Iterable[int] = (),
    ) -> None:
        """Enter the replies of a round.

        Parameters
        ----------
        accepted : sequence of n node ids
            Senders of the accepted replies.
        distances : n floats, optional
            ‖update of the node − center‖; None if nothing was aggregated.
        predictable : bool (default: False)
            Whether the center was known before the replies of the round were sent, such
            as the aggregate of the round before. Other distances are no evidence: they
            only order the nodes.
        trimmed : node ids
            Senders of accepted replies with weight 0.
        f : int
            How many of the accepted may be malicious.
        rejected : (node id, reason) pairs
        missing : node ids
        """
        for node in accepted:
            self._of(node).asked += 1
        if distances is not None:
            honest = len(accepted) - f
            ranks = _ranks(np.asarray(distances))
            for node, rank in zip(accepted, ranks, strict=True):
                height = max(rank - f - 0.5, 0.0) / honest
                depth = max(honest - rank + 0.5, 0.0) / honest
                self._of(node).rank(height, depth, tested=predictable)
        for node in trimmed:
            self._of(node).trimmed += 1
        for node, reason in rejected:
            record = self._of(node)
            record.asked += 1
            record.rejected[reason] += 1
            if reason in PROOFS | FAULTS:
                record.rank(1.0, 0.0, tested=False)
        for node in missing:
            record = self._of(node)
            record.asked += 1
            record.missing += 1

    def judge(self, seen: Observation) -> dict[int, bool]:
        """Enter a round, and return for every known node whether it is a suspect."""
        self.note(
            seen.accepted,
            distances=seen.distances,
            predictable=seen.predictable,
            trimmed=seen.trimmed,
            f=seen.f,
            rejected=seen.rejected,
            missing=seen.missing,
        )
        suspects = set(self.suspects())
        return {node: node in suspects for node in self._records}

    def _of(self, node: int) -> Record:
        return self._records.setdefault(node, Record())

    def violators(self, times: int) -> list[int]:
        """Return the nodes with at least so many proofs and faults, the most first.

        A reply that is rejected for another reason does not count: an honest client in
        working order may send it.

        Examples
        --------
        >>> ledger = Ledger()
        >>> for _ in range(2):
        ...     ledger.note([1], rejected=[(2, "shape"), (3, "weight")])
        >>> ledger.violators(2), ledger.violators(3)
        ([2], [])
        """
        counts = {n: r.proofs + r.faults for n, r in self._records.items()}
        found = [node for node, count in counts.items() if count >= times]
        return sorted(found, key=lambda node: -counts[node])

    def auc(self, malicious: Collection[int]) -> float | None:
        """Measure how well the order of suspicion separates known malicious nodes.

        Returns
        -------
        float or None
            Probability that a malicious node comes before an honest one in `to_rows`,
            ties counting half: 1 if all of them do, ½ for guessing. None if there are
            no malicious or no honest nodes.

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
        """Return the nodes with a proof, three faults, or ranks of no honest node.

        Under the assumptions of `Ledger` and with this confidence no honest node in
        working order is among them in any round of the run.

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
            node
            for node, record in self._records.items()
            if record.proofs or record.faults >= _FAULTS or record.suspicion >= limit
        ]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a row of plain values for each node, the most suspicious first."""
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
        """Return the ledger that `to_rows` wrote."""
        ledger = cls()
        for row in rows:
            known = {k: v for k, v in row.items() if k not in ("node", "suspicion")}
            known["rejected"] = Counter(row["rejected"])
            ledger._records[row["node"]] = Record(**known)
        return ledger

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"rows": self.to_rows()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._records = Ledger.from_rows(state["rows"])._records


def _log_evidence(excess: float, variance: float) -> float:
    """Return ln E(S) of the theorem in `Ledger`."""
    total = variance + _PRIOR
    z = excess / math.sqrt(total)
    z = max(z, -30.0)  # Φ underflows below; there E is next to 0
    upper = math.erfc(-z / math.sqrt(2))  # 2 Φ(z)
    return math.log(upper) + z * z / 2 + math.log(_PRIOR / total) / 2


def _ranks(distances: NDArray[Any]) -> list[float]:
    """Rank distances from 1 to n; equal ones share their ranks."""
    ordered = np.sort(distances)
    below = np.searchsorted(ordered, distances, side="left")
    upto = np.searchsorted(ordered, distances, side="right")
    return [float(rank) for rank in (below + upto + 1) / 2]
