"""Detectors: what a round showed goes in, a verdict on each node comes out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

from numpy.typing import ArrayLike

from flwr_ctma.errors import parameter_error
from flwr_ctma.tracking.evidence import FAULTS, PROOFS

__all__ = [
    "Detector",
    "Exclusion",
    "Observation",
    "check_detector",
    "make_exclusion",
]


@dataclass(frozen=True)
class Observation:
    """What the server saw of the nodes in a round, or between two evaluations.

    Attributes
    ----------
    accepted : sequence of n node ids
        Senders of the accepted replies.
    f : int
        How many of them may be malicious.
    distances : n floats, optional
        ‖update of the node − center‖.
    predictable : bool (default: False)
        Whether the center was known before the replies were sent.
    trimmed : sequence of node ids
        Senders of accepted replies with weight 0 in the aggregate.
    rejected : sequence of (node id, reason)
        See `flwr_ctma.tracking.evidence` for the reasons.
    missing : sequence of node ids
        Nodes that did not reply, or replied with an error.
    """

    accepted: Sequence[int]
    f: int = 0
    distances: ArrayLike | None = None
    predictable: bool = False
    trimmed: Sequence[int] = ()
    rejected: Sequence[tuple[int, str]] = ()
    missing: Sequence[int] = ()


@runtime_checkable
class Detector(Protocol):
    """Judge nodes by what was seen of them. `Ledger` is a detector.

    Examples
    --------
    A detector that suspects nodes that were silent in three rounds in a row:

    >>> class Silent:
    ...     def __init__(self):
    ...         self.rounds = Counter()
    ...     def judge(self, seen):
    ...         for node in seen.accepted:
    ...             self.rounds[node] = 0
    ...         self.rounds.update(seen.missing)
    ...         return {node: count >= 3 for node, count in self.rounds.items()}
    ...     def state_dict(self):
    ...         return dict(self.rounds)
    ...     def load_state_dict(self, state):
    ...         self.rounds = Counter(state)
    >>> detector = Silent()
    >>> isinstance(detector, Detector)
    True
    >>> for _ in range(3):
    ...     verdict = detector.judge(Observation(accepted=[1, 2], missing=[3]))
    >>> verdict
    {1: False, 2: False, 3: True}
    """

    def judge(self, seen: Observation) -> Mapping[int, bool]:
        """Enter an observation; return which nodes are held to be malicious."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state for a checkpoint, as plain values and arrays."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""


class Exclusion:
    """Decide which nodes are not asked, by rejections or by verdicts, with an appeal.

    Parameters
    ----------
    max_rejections : int | None (default: None)
        Exclude a node after so many proofs and faults. None: never for these.
    by_verdict : bool (default: False)
        Exclude the nodes that the detector holds to be malicious.
    appeal_after : int | None (default: None)
        Ask an excluded node again after so many observations. It is excluded again if
        its next reply is a proof or a fault, or if the verdict stands; otherwise it
        starts anew. None: an exclusion is final.

    Raises
    ------
    ValueError
        If a number is below 1.

    Notes
    -----
    The caller excludes at most f nodes of a round, the first of `nodes`. A node that is
    excluded by verdict proves nothing: it must not lower f.

    Examples
    --------
    >>> exclusion = Exclusion(max_rejections=1, appeal_after=2)
    >>> exclusion.enter(Observation([1, 2], rejected=[(3, "shape")]), {})
    >>> exclusion.nodes
    [3]
    >>> for _ in range(2):
    ...     exclusion.enter(Observation([1, 2]), {})
    >>> exclusion.nodes
    []
    >>> exclusion.enter(Observation([1, 2], rejected=[(3, "shape")]), {})
    >>> exclusion.nodes
    [3]
    """

    def __init__(
        self,
        max_rejections: int | None = None,
        by_verdict: bool = False,
        appeal_after: int | None = None,
    ) -> None:
        for name, value in (
            ("max_rejections", max_rejections),
            ("appeal_after", appeal_after),
        ):
            if value is not None and not _is_count(value):
                raise parameter_error(name, "a count, at least 1, or None", value)
        self.max_rejections = max_rejections
        self.by_verdict = by_verdict
        self.appeal_after = appeal_after
        self._violations: Counter[int] = Counter()
        self._since: dict[int, int] = {}
        self._now = 0

    @property
    def nodes(self) -> list[int]:
        """The nodes that are not asked now, the most proofs and faults first."""
        found = [
            node
            for node, since in self._since.items()
            if self.appeal_after is None or self._now - since < self.appeal_after
        ]
        return sorted(found, key=lambda node: -self._violations[node])

    @property
    def violators(self) -> list[int]:
        """Those of `nodes` that are excluded for proofs and faults."""
        least = self.max_rejections
        if least is None:
            return []
        return [node for node in self.nodes if self._violations[node] >= least]

    def enter(self, seen: Observation, verdicts: Mapping[int, bool]) -> None:
        """Enter an observation and the verdicts that a detector returned for it."""
        self._now += 1
        violated = [n for n, reason in seen.rejected if reason in PROOFS | FAULTS]
        self._violations.update(violated)
        least = self.max_rejections
        for node in dict.fromkeys([*seen.accepted, *violated]):
            rejected = (
                least is not None
                and node in violated
                and self._violations[node] >= least
            )
            if rejected or (self.by_verdict and verdicts.get(node, False)):
                self._since[node] = self._now
            elif node in self._since and node not in self.nodes:
                del self._since[node], self._violations[node]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "violations": dict(self._violations),
            "since": dict(self._since),
            "now": self._now,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._violations = Counter(state["violations"])
        self._since = dict(state["since"])
        self._now = state["now"]


def check_detector(detector: Detector | None) -> Detector | None:
    """Return a detector, or None; raise a ValueError for anything else."""
    if not isinstance(detector, Detector | None):
        raise parameter_error(
            "detector",
            "an object with `judge`, `state_dict` and `load_state_dict`, or None",
            detector,
        )
    return detector


def make_exclusion(
    exclusion: Exclusion | None, max_rejections: int | None = None
) -> Exclusion:
    """Return the exclusion, or the one that `max_rejections` is short for."""
    if exclusion is None:
        return Exclusion(max_rejections)
    if not isinstance(exclusion, Exclusion):
        raise parameter_error("exclusion", "an `Exclusion`, or None", exclusion)
    if max_rejections is not None:
        raise parameter_error(
            "max_rejections",
            "None beside an `exclusion`",
            max_rejections,
            "Write `Exclusion(max_rejections=…)`.",
        )
    return exclusion


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return int(value) >= 1
