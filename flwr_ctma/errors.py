"""One sentence for every wrong input: what it should be, what was found, the remedy."""

import difflib
from collections.abc import Iterable, Mapping

__all__ = ["did_you_mean", "parameter_error"]

_LONGEST = 200


def parameter_error(
    name: str, expected: str, found: object, remedy: str = ""
) -> ValueError:
    """Build the ValueError for a parameter.

    Parameters
    ----------
    name : str
        The parameter, as the user wrote it.
    expected : str
        What it should be.
    found : object
        What it is; only the beginning is shown of what is long.
    remedy : str (default: "")
        What to do about it: one sentence.

    Examples
    --------
    >>> parameter_error("f", "smaller than n/2 = 2.5", 3, "Sample more clients.")
    ValueError('Parameter `f` should be smaller than n/2 = 2.5. Found `f = 3`. \
Sample more clients.')
    """
    shown = repr(found)
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}…"
    sentence = f"Parameter `{name}` should be {expected}. Found `{name} = {shown}`."
    return ValueError(f"{sentence} {remedy}".rstrip())


def did_you_mean(
    found: str, known: Iterable[str], same: Mapping[str, str] | None = None
) -> str:
    """Return the sentence that suggests the known name closest to a misspelled one.

    Parameters
    ----------
    found : str
        The misspelled name.
    known : iterable of str
        The names that exist.
    same : Mapping[str, str], optional
        Other names, to the known name that the sentence suggests instead.

    Returns
    -------
    str
        The sentence; empty if no known name is close.

    Examples
    --------
    >>> did_you_mean("kurm", ["gm", "krum"])
    'Did you mean `krum`?'
    >>> did_you_mean("mode", ["gm", "krum"])
    ''
    >>> did_you_mean("GeoMedian", ["gm", "krum"], {"GeometricMedian": "gm"})
    'Did you mean `gm`?'
    """
    names = {other.lower(): name for other, name in (same or {}).items()}
    names |= {name: name for name in known}
    close = difflib.get_close_matches(found.lower(), names, n=1)
    return f"Did you mean `{names[close[0]]}`?" if close else ""
