"""A metric by round, over runs that differ in their seed alone."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Curve"]


@dataclass(frozen=True)
class Curve:
    """Mean, least and greatest value of a metric by round.

    A round in which some run has no finite number is None.

    Examples
    --------
    >>> Curve.over_runs([1, 2], [[0.25, 0.75], []])
    Curve(rounds=[1, 2], mean=[0.5, None], least=[0.25, None], greatest=[0.75, None])
    """

    rounds: Sequence[int]
    mean: Sequence[float | None]
    least: Sequence[float | None]
    greatest: Sequence[float | None]

    @classmethod
    def over_runs(
        cls, rounds: Sequence[int], values: Sequence[Sequence[float]]
    ) -> "Curve":
        """Summarise the values of all runs, given for each round."""
        return cls(
            rounds,
            [statistics.fmean(v) if v else None for v in values],
            [min(v) if v else None for v in values],
            [max(v) if v else None for v in values],
        )
