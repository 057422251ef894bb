"""The theoretical guarantee of a rule for a number of nodes."""

from collections.abc import Iterator
from logging import INFO, WARNING
from math import inf, isfinite

from flwr_ctma.aggregators import CTMA, Aggregator, Hierarchical
from flwr_ctma.aggregators.base import iter_rules
from flwr_ctma.compat import log

__all__ = ["caveats", "guarantee", "log_guarantee"]

# Measured: above this share CTMA loses to its own base rule under IPM.
_CTMA_SHARE = 0.3


def log_guarantee(rule: Aggregator, n: int, f: int) -> None:
    """Log the guarantee and the caveats, if a majority of the n nodes is honest."""
    if 2 * f < n:
        log(INFO, "\t> %s", guarantee(rule, n, f))
        for caveat in caveats(rule, n, f):
            log(WARNING, "\t> %s", caveat)


def guarantee(rule: Aggregator, n: int, f: int) -> str:
    """Return the guarantee as a sentence.

    Examples
    --------
    >>> from flwr_ctma.aggregators import parse_aggregator
    >>> print(guarantee(parse_aggregator("ctma(gm)"), n=17, f=3))
    ctma(gm) with f = 3 of 17: squared error at most 4.1 times the honest variance \
(κ; no rule can have less than 0.27)
    """
    kappa = rule.kappa(n, f)
    least = f / (n - 2 * f)
    known = (
        f"squared error at most {kappa:.1f} times the honest variance (κ; no rule can "
        f"have less than {least:.2g})"
        if kappa is not None and isfinite(kappa)
        else "no bound on the error is known"
    )
    chance = sum(p.failure for p in iter_rules(rule) if isinstance(p, Hierarchical))
    but = f", but for a chance of {chance:g} in each round" if chance else ""
    return f"{rule} with f = {f} of {n}: {known}{but}"


def caveats(rule: Aggregator, n: int, f: int) -> Iterator[str]:
    """Yield a sentence for each reason why the rule gives little protection.

    Examples
    --------
    >>> from flwr_ctma.aggregators import parse_aggregator
    >>> for caveat in caveats(parse_aggregator("ctma(gm)"), n=17, f=8):
    ...     print(caveat)
    f/n = 0.47 is above 0.3: CTMA may keep all 8 liars if they are alike. Under IPM it \
then fails from ε = (n - 2f)/f = 0.12 on. Use caf, or sample more nodes.
    """
    if f == 0:
        return
    if any(isinstance(part, CTMA) for part in iter_rules(rule)) and f / n > _CTMA_SHARE:
        kept = "the liar" if f == 1 else f"all {f} liars if they are alike"
        yield (
            f"f/n = {f / n:.2f} is above {_CTMA_SHARE}: CTMA may keep {kept}. Under "
            f"IPM it then fails from ε = (n - 2f)/f = {(n - 2 * f) / f:.2g} on. Use "
            "caf, or sample more nodes."
        )
    if rule.kappa(n, f) == inf:
        yield f"{rule} is not robust: a single liar may move the result anywhere."
