"""Scores of rules by attack: means over seeds, worst cases and their intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence

from flwr_ctma.experiments.intervals import Interval, bootstrap_interval
from flwr_ctma.experiments.match import Match, MatchResult

__all__ = ["Scores", "best_first", "mean_scores", "worst", "worst_case_interval"]

Scores = dict[int, dict[str, dict[str, float | None]]]
"""Number of malicious clients → rule → attack → mean over seeds.

None: not run yet, or the rule is undefined for so many. Minus infinity: a run crashed
or diverged.
"""


def mean_scores(results: Mapping[Match, MatchResult]) -> Scores:
    """Average the results over seeds; the best worst case comes first."""
    gathered: dict[int, dict[str, dict[str, list[float]]]] = {}
    for match, result in results.items():
        by_rule = gathered.setdefault(match.num_malicious, {})
        values = by_rule.setdefault(match.aggregator, {}).setdefault(match.attack, [])
        if (value := _value(result)) is not None:
            values.append(value)
    return {f: _means(by_rule) for f, by_rule in gathered.items()}


def worst(by_attack: Mapping[str, float | None]) -> float | None:
    """Return the worst score of a rule; None if it has none.

    Examples
    --------
    >>> worst({"none": 0.9, "alie": 0.4, "ipm": None})
    0.4
    """
    return min((v for v in by_attack.values() if v is not None), default=None)


def best_first(
    by_rule: Mapping[str, Mapping[str, float | None]],
) -> dict[str, dict[str, float | None]]:
    """Order rules by their worst score, the best first; rules without scores last."""

    def key(rule: str) -> tuple[bool, float]:
        low = worst(by_rule[rule])
        return low is not None, -math.inf if low is None else low

    return {rule: dict(by_rule[rule]) for rule in sorted(by_rule, key=key)[::-1]}


def worst_case_interval(
    results: Mapping[Match, MatchResult], aggregator: str, num_malicious: int
) -> Interval | None:
    """Return the bootstrap interval of a rule's worst mean over attacks.

    Seeds are resampled together for all attacks. None unless at least two seeds have a
    finite value under every attack.
    """
    table: dict[int, dict[str, float]] = {}
    for match, result in results.items():
        value = _value(result)
        played = (match.aggregator, match.num_malicious)
        if played == (aggregator, num_malicious) and value is not None:
            table.setdefault(match.seed, {})[match.attack] = value
    attacks = {attack for row in table.values() for attack in row}
    rows = [row for row in table.values() if row.keys() == attacks]
    samples = [[row[attack] for attack in sorted(attacks)] for row in rows]
    return bootstrap_interval(samples, lambda drawn: float(drawn.mean(axis=0).min()))


def _value(result: MatchResult) -> float | None:
    return -math.inf if result.is_worst_case else result.value


def _means(
    gathered: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, dict[str, float | None]]:
    attacks = dict.fromkeys(attack for row in gathered.values() for attack in row)
    return best_first(
        {
            rule: {
                attack: statistics.fmean(row[attack]) if row.get(attack) else None
                for attack in attacks
            }
            for rule, row in gathered.items()
        }
    )
