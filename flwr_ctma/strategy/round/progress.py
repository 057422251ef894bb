"""How many rounds of a run were aggregated, and why the replies of others do not count.

A run in which no round was aggregated is a failed run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr_ctma.strategy.round.replies import InspectedReplies, Round

__all__ = ["Progress", "check_same_app"]

# Reasons are words of ours and error codes of Flower's: never many.
_MOST_REASONS = 50
# Reasons that show a client app of another kind, if most replies have them.
_OF_ANOTHER_APP = {
    "keys": "Clients must send back all arrays of the model: for FedPer or FedBN, let "
    "the model of the server have the shared arrays alone, or let clients add their "
    "private ones as they were sent.",
    "shape": "Clients must send back arrays of the shapes that they were sent.",
    "records": "Clients must send one ArrayRecord and one MetricRecord: put all else "
    "in a ConfigRecord.",
}


@dataclass
class Progress:
    """The counts of a run.

    Attributes
    ----------
    asked : int
        Rounds in which nodes were asked to train.
    aggregated : int
        Rounds that were aggregated.
    accepted : int
        Accepted replies in all rounds.
    reasons : Counter of str
        Rejected and missing replies by reason.
    examples : dict of str by str
        The last detail for each reason.
    """

    asked: int = 0
    aggregated: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, found: InspectedReplies) -> None:
        """Count the replies of a round."""
        self.accepted += len(found.accepted)
        details = [(why.reason, str(why)) for _, why in found.rejected]
        details += [(why.partition(":")[0], why) for _, why in found.missing]
        self._count(details)

    def close(self, strategy: str, has_model: bool) -> None:
        """Count a round, with or without a model from the strategy inside."""
        self.aggregated += has_model
        if not has_model:
            self._count([("no-model", f"round without a model from {strategy}")])

    def _count(self, details: Iterable[tuple[str, str]]) -> None:
        for reason, detail in details:
            if reason in self.reasons or len(self.reasons) < _MOST_REASONS:
                self.reasons[reason] += 1
                self.examples[reason] = detail

    def check(self) -> None:
        """Raise a RuntimeError if no round was aggregated."""
        if not self.asked or self.aggregated:
            return
        raise RuntimeError(self.sentence)

    @property
    def sentence(self) -> str:
        """Why no round was aggregated."""
        counts = "; ".join(
            f"{count} × {self.examples[reason]}"
            for reason, count in self.reasons.most_common(5)
        )
        return (
            f"No round of {self.asked} was aggregated, and the model is the initial "
            f"one. {self.accepted} replies were accepted in all. Others were rejected "
            f"or missing: {counts or 'none'}."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {**vars(self), "reasons": dict(self.reasons)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Progress":
        """Return the counts that `state_dict` returned."""
        return cls(**{**state, "reasons": Counter(state["reasons"])})


def check_same_app(progress: Progress, round_: Round, found: InspectedReplies) -> None:
    """Raise a ValueError if most clients send something else than a trained model.

    Such clients are no liars: their app and this strategy do not fit. Only rounds
    before the first that is aggregated are checked.
    """
    if progress.aggregated:
        return
    rejected = [why for _, why in found.rejected if why.reason in _OF_ANOTHER_APP]
    if 2 * len(rejected) <= len(round_.asked):
        return
    common = Counter(why.reason for why in rejected).most_common(1)[0][0]
    example = next(why for why in rejected if why.reason == common)
    raise ValueError(
        f"{len(rejected)} of {len(round_.asked)} replies do not fit the model that was "
        f"sent ({example}). {_OF_ANOTHER_APP[common]}"
    )
