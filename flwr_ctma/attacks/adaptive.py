"""An attack that searches direction and strength against the rule in use."""

from collections.abc import Iterator
from dataclasses import dataclass

from flwr_ctma.attacks.knowledge import Rows
from flwr_ctma.attacks.search import Found, RuleAware, Search
from flwr_ctma.errors import parameter_error

__all__ = ["Adaptive"]


@dataclass(frozen=True)
class Adaptive(RuleAware, name="adaptive"):
    """All colluders send μ + γ·p, with the direction and strength that do most harm.

    γ and p maximise the objective of the rule's output A(x_1, …, x_h, x, …, x). The
    directions that are searched are

        −μ, −σ, ±v_1, and from each of these p ← A − μ, up to `steps` times,

    with the first principal direction v_1 of the honest updates. A − μ is the
    direction in which the rule gives way. The rule is called as a whole, with its f and
    weights, so the attack is aimed at every rule that it is composed of.

    Parameters
    ----------
    evaluations : int (default: 12)
        Number of calls of the rule on each line, twice as many on the best line.
    steps : int (default: 3)
        Number of lines from each starting direction. At least 1.
    objective : str (default: "distance")
        What is maximised: the distance ‖A − μ‖, or for "descent" the step against the
        honest mean, −⟨A, μ⟩/‖μ‖.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or the attack is not aimed at a rule.

    References
    ----------
    The line search over γ is that of `OptimalIPM`. The search over directions is this
    library's; Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, §IV,
    compare the first two directions and sign(μ).

    Examples
    --------
    The honest updates differ in the second coordinate. There the mean of the two rows
    that CTMA keeps moves farther than along −μ:

    >>> import numpy as np
    >>> from flwr_ctma.aggregators import CTMA, CwMed
    >>> from flwr_ctma.attacks import OptimalIPM
    >>> honest = np.array([[1.0, 2.0], [1.0, 0.0], [1.0, -2.0]])
    >>> rule = CTMA(CwMed())
    >>> def shift(attack):
    ...     sent = attack.against(rule, f=1)(honest, num_malicious=1)
    ...     output = rule(np.vstack([honest, sent]), f=1)
    ...     return round(float(np.linalg.norm(output - honest.mean(axis=0))), 2)
    >>> shift(OptimalIPM()), shift(Adaptive())
    (0.94, 2.0)
    """

    evaluations: int = 12
    steps: int = 3
    objective: str = "distance"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.steps < 1:
            raise parameter_error("steps", "at least 1", self.steps)
        if self.objective not in ("distance", "descent"):
            raise parameter_error("objective", "distance or descent", self.objective)

    @property
    def _objective(self) -> str:
        return self.objective

    def directions(self, search: Search) -> Iterator[Rows]:
        """−μ, −σ and ±v_1: the starting directions."""
        yield -search.known.mean
        yield -search.known.std
        yield from search.axes(1)

    def candidates(self, search: Search) -> Iterator[Found]:
        """Search from every starting direction, then once more along the best."""
        found = [search.follow(p, self.steps) for p in self.directions(search)]
        yield from found
        best = max(found, key=lambda one: one.score)
        yield search.along(best.direction, evaluations=2 * self.evaluations)
