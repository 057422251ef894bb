"""How scores of rules by attack are written."""

import math
from collections.abc import Mapping

__all__ = ["attacks_of", "format_score", "is_share"]

_ByRule = Mapping[str, Mapping[str, float | None]]


def attacks_of(by_rule: _ByRule) -> list[str]:
    """Return the attacks that any rule has a score for, in order."""
    return list(dict.fromkeys(attack for row in by_rule.values() for attack in row))


def is_share(by_rule: _ByRule) -> bool:
    """Return whether all scores are shares in [0, 1], which are shown in per cent."""
    values = [value for row in by_rule.values() for value in row.values()]
    return all(0 <= v <= 1 for v in values if v is not None and math.isfinite(v))


def format_score(value: float | None, share: bool) -> str:
    """Return a score as text.

    Examples
    --------
    >>> format_score(0.5, share=True), format_score(-3.25, share=False)
    ('50.0', '-3.25')
    >>> format_score(-math.inf, share=True), format_score(None, share=True)
    ('failed', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "failed"
    return f"{100 * value:.1f}" if share else f"{value:.4g}"
