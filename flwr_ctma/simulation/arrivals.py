"""Arrival models: how fast simulated clients answer, as a run-config spells it."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from flwr.clientapp import ClientApp

from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.clock import (
    ArrivalGrid,
    Durations,
    FixedDurations,
    Proportional,
)
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.spec import check_fields, parse, spell

__all__ = [
    "ArrivalModel",
    "ById",
    "ByIdSquared",
    "Straggler",
    "Traced",
    "Uniform",
    "parse_arrival_model",
]


class ArrivalModel(ABC):
    """The speed of each of n clients, of which the first f may be malicious."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def durations(self, n: int, f: int = 0, share: float = 0.0) -> Durations:
        """Return the durations of n clients.

        Parameters
        ----------
        n : int
        f : int (default: 0)
            The number of malicious clients, which are the first.
        share : float (default: 0.0)
            The share of all arrivals that come from malicious clients, where durations
            are random; 0 leaves their rates as they are.
        """

    def __str__(self) -> str:
        """Return the text that `parse_arrival_model` reads."""
        return spell(self, _ARRIVAL_MODELS)


@dataclass(frozen=True)
class Uniform(ArrivalModel):
    """Each next arrival is any client's, with probability 1 / n.

    With a share σ of f malicious clients, the rates of these are scaled, so that::

        Σ_{i < f} λ_i / Σ_j λ_j = σ

    Examples
    --------
    >>> parse_arrival_model("uniform").durations(4, f=1, share=0.4).rates
    (2.0, 1.0, 1.0, 1.0)
    """

    power: ClassVar[float] = 0.0

    def durations(self, n: int, f: int = 0, share: float = 0.0) -> Durations:
        """Return durations with the rates of the first f scaled to their share.

        Raises
        ------
        ValueError
            If the share is not in [0, 1).
        """
        if not 0 <= share < 1:
            raise parameter_error("malicious-share", "in [0, 1)", share)
        rates = np.arange(1, n + 1) ** self.power
        if f and share:
            rates[:f] *= share / (1 - share) * rates[f:].sum() / rates[:f].sum()
        return Proportional(rates=tuple(rates.tolist()))


@dataclass(frozen=True)
class ById(Uniform):
    """Each next arrival is client i's, counted from 1, with probability i / Σ_j j.

    References
    ----------
    Dahan and Levy, "Weight for Robustness", NeurIPS 2024 (arXiv 2501.09621).

    Examples
    --------
    >>> parse_arrival_model("id").durations(4).rates
    (1.0, 2.0, 3.0, 4.0)
    """

    power: ClassVar[float] = 1.0


@dataclass(frozen=True)
class ByIdSquared(Uniform):
    """Each next arrival is client i's, counted from 1, with probability i² / Σ_j j².

    References
    ----------
    Dahan and Levy, "Weight for Robustness", NeurIPS 2024 (arXiv 2501.09621).

    Examples
    --------
    >>> parse_arrival_model("id2").durations(4).rates
    (1.0, 4.0, 9.0, 16.0)
    """

    power: ClassVar[float] = 2.0


@dataclass(frozen=True)
class Straggler(ArrivalModel):
    """The last client is slower than all others, which answer in a second.

    Parameters
    ----------
    slowdown : float (default: 10.0)
        Seconds that the last client takes.

    Raises
    ------
    ValueError
        If slowdown is below 1, or not finite.

    Examples
    --------
    >>> Straggler(60.0).durations(3)
    FixedDurations(seconds=(1.0, 1.0, 60.0))
    """

    slowdown: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.slowdown < np.inf:
            raise parameter_error("slowdown", "at least 1, and finite", self.slowdown)

    def durations(self, n: int, f: int = 0, share: float = 0.0) -> Durations:
        """Return the same durations for every answer."""
        return FixedDurations((1.0,) * (n - 1) + (float(self.slowdown),))


@dataclass(frozen=True)
class Traced(ArrivalModel):
    """Recorded durations: each answer takes a random one of its client's.

    Parameters
    ----------
    path : str
        A CSV file with the columns `node`, counted from 0, and `seconds`.

    Raises
    ------
    ValueError
        When it is read: if it is no such file, or has no time for some client.
    """

    path: str

    def durations(self, n: int, f: int = 0, share: float = 0.0) -> Durations:
        """Return the durations in the file.

        Raises
        ------
        ValueError
            If it is no such file, or has no time for some client.
        """
        found: dict[int, list[float]] = {node: [] for node in range(n)}
        try:
            path = Path(self.path).expanduser()
            # Excel writes a byte order mark before the first name.
            with path.open(newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file):
                    if int(row["node"]) in found:
                        found[int(row["node"])].append(float(row["seconds"]))
        except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            expected = "a CSV file with the columns `node` and `seconds`"
            raise parameter_error(
                "arrivals", expected, self.path, str(error)
            ) from error
        without = [node for node, seconds in found.items() if not seconds]
        if without or not all(
            0 < s < np.inf for times in found.values() for s in times
        ):
            expected = f"a file with times above 0 for each of the nodes 0 to {n - 1}"
            remedy = f"It has none for {without[0]}." if without else ""
            raise parameter_error("arrivals", expected, self.path, remedy)
        return _Drawn(tuple(tuple(times) for times in found.values()))

    def __str__(self) -> str:
        """Return the path."""
        return self.path


@dataclass(frozen=True)
class _Drawn(Durations):
    times: tuple[tuple[float, ...], ...] = field(repr=False)

    def __call__(self, node: int, rng: np.random.Generator) -> float:
        return float(rng.choice(self.times[node]))


_ARRIVAL_MODELS: dict[str, type] = {
    "uniform": Uniform,
    "id": ById,
    "id2": ByIdSquared,
    "straggler": Straggler,
}


def parse_arrival_model(text: str) -> ArrivalModel | None:
    """Return the arrival model that a run-config spells; None for `real` time.

    Raises
    ------
    ValueError
        If the text spells no arrival model.

    Examples
    --------
    >>> parse_arrival_model("straggler(slowdown=3)")
    Straggler(slowdown=3.0)
    >>> parse_arrival_model("measured/times.csv")
    Traced(path='measured/times.csv')
    """
    if text == "real":
        return None
    if text.endswith(".csv"):
        return Traced(text)
    if text.partition("(")[0].strip() not in _ARRIVAL_MODELS:
        names = ", ".join(["real", *_ARRIVAL_MODELS])
        raise parameter_error(
            "arrivals", f"one of {names}, or a CSV file of times", text
        )
    return cast(ArrivalModel, parse(text, _ARRIVAL_MODELS, "arrivals"))


def grid_of(
    client_app: ClientApp,
    num_nodes: int,
    run_config: Mapping[str, Any],
    kind: type[InProcessGrid] = InProcessGrid,
) -> InProcessGrid:
    """Build a Grid in this process, on a virtual clock if `arrivals` names a model.

    The keys `arrivals`, `num-malicious-nodes`, `malicious-share` and `seed` of the
    run-config are used where they are there. On a virtual clock clients answer one by
    one.

    Raises
    ------
    ValueError
        If `arrivals` names a model, and the Grid is to be of another kind.
    """
    model = parse_arrival_model(str(run_config.get("arrivals", "real")))
    config = dict(run_config)
    if model is None:
        return kind(client_app, num_nodes, config)
    if kind is not InProcessGrid:
        expected = "`real` where clients do not answer one by one"
        raise parameter_error("arrivals", expected, str(model))
    f = min(int(config.get("num-malicious-nodes", 0)), num_nodes - 1)
    durations = model.durations(num_nodes, f, float(config.get("malicious-share", 0.0)))
    seed = int(config.get("seed", 0))
    return ArrivalGrid(client_app, num_nodes, durations, config, seed)
