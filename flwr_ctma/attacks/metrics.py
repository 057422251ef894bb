"""Lies about a client's number of examples and its metrics."""

from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message

from flwr_ctma.attacks import messages
from flwr_ctma.attacks.base import Attack
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = ["InflatedWeight", "LyingMetrics"]


class _Report(Attack):
    """Answer honestly, then change the metrics of the reply."""

    def report(self, name: str, is_weight: bool, number: float) -> float:
        """Return what is reported in place of a number."""
        raise NotImplementedError

    def train(
        self,
        message: Message,
        context: Context,
        respond: ClientAppCallable,
        rng: np.random.Generator,
    ) -> Message | None:
        """Reply with the honest arrays and other metrics."""
        return messages.map_metrics(respond(message, context), self.report)

    evaluate = train


@dataclass(frozen=True)
class InflatedWeight(_Report, name="inflatedweight"):
    """Claim γ times the client's number of examples.

    FedAvg weighs by `num-examples`: with γ = 1000 one of 17 equal clients counts
    1000/1016 of the model. `both(signflip, inflatedweight)` takes the model over.

    Parameters
    ----------
    factor : float (default: 1000.0)
        γ; a message can hold negative values too.

    Examples
    --------
    >>> attack = InflatedWeight()
    >>> attack.report("num-examples", True, 50), attack.report("loss", False, 0.3)
    (50000.0, 0.3)
    """

    factor: float = 1000.0

    def report(self, name: str, is_weight: bool, number: float) -> float:
        """Return γ times the number of examples."""
        return self.factor * number if is_weight else number


@dataclass(frozen=True)
class LyingMetrics(_Report, name="lyingmetrics"):
    """Report one value for every metric except the number of examples.

    Parameters
    ----------
    value : float (default: 1e6)
        The value; 0.0 claims a perfect loss.

    Raises
    ------
    ValueError
        If value is not finite.

    Examples
    --------
    >>> attack = LyingMetrics(value=0.0)
    >>> attack.report("num-examples", True, 50), attack.report("loss", False, 0.3)
    (50, 0.0)
    """

    value: float = 1e6

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if not np.isfinite(self.value):
            raise parameter_error(
                "value", "finite", self.value, "Use `malformed(fault=…)`."
            )

    def report(self, name: str, is_weight: bool, number: float) -> float:
        """Return the same value for every metric."""
        return number if is_weight else self.value
