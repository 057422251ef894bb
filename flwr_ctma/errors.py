"""One sentence for every wrong input: what it should be, what was found, the remedy."""

__all__ = ["parameter_error"]

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
