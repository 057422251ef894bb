"""The base of every strategy of this project that holds another strategy."""

import inspect
from abc import ABCMeta
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.wrappers.run import Hooks, inside, run_strategy
from flwr_ctma.strategy.wrappers.state import plain_attributes, set_attributes

__all__ = [
    "Evaluate",
    "HookedStrategy",
    "StrategyWrapper",
    "inside",
    "is_asynchronous",
    "setting",
]

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class HookedStrategy(Hooks, Strategy):
    """A strategy whose `start` calls the hooks of all strategies inside it."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int | None = None,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
        **settings: Any,
    ) -> Result:
        """Run the rounds; see `flwr.serverapp.strategy.Strategy.start`.

        If a strategy inside has a `start` of its own, that runs the rounds; it also
        gets further keyword arguments. `num_rounds` is its default if None, or 3.
        """
        start = self.run_rounds if self._run is not None else run_strategy
        result: Result = start(
            self,
            grid,
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            evaluate_fn,
            **settings,
        )
        return result


class _Constructed(ABCMeta):
    """Mark each object when its constructor is done."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """The signature of the constructor, which `help` and editors show."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        _, *parameters = signature.parameters.values()
        return signature.replace(parameters=parameters)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        vars(made)["_is_constructed"] = True
        return made


class StrategyWrapper(HookedStrategy, metaclass=_Constructed):
    """Do as the strategy inside does; derive from this class to do more.

    Attributes and methods that the wrapper lacks are those of the strategy inside; to
    assign such an attribute changes it there.

    Parameters
    ----------
    strategy : Strategy
        The strategy inside.

    Raises
    ------
    ValueError
        If that is no Strategy, or holds a wrapper that may occur only once.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> class NoEvaluation(StrategyWrapper):
    ...     def configure_evaluate(self, server_round, arrays, config, grid):
    ...         return []
    >>> strategy = NoEvaluation(FedAvg())
    >>> strategy.fraction_train = 0.5
    >>> strategy.strategy.fraction_train
    0.5
    """

    def __init__(self, strategy: Strategy) -> None:
        if not isinstance(strategy, Strategy):
            raise parameter_error(
                "strategy", "a Strategy of Flower's Message API", strategy
            )
        kind = next(k for k in type(self).__mro__ if "repeatable" in vars(k))
        if not self.repeatable and any(isinstance(s, kind) for s in inside(strategy)):
            name = kind.__name__
            raise parameter_error(
                "strategy",
                f"without another {name}",
                type(strategy).__name__,
                f"Two in one chain have no meaning: keep one {name}.",
            )
        self.strategy = strategy

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the strategy inside."""
        held = vars(self).get("strategy")
        if held is None or name.startswith("_"):
            kind = type(self).__name__
            raise AttributeError(f"{kind!r} object has no attribute {name!r}")
        return getattr(held, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute here, or inside if this wrapper does not know it.

        A wrapper of one's own may have attributes that its constructor does not set: it
        keeps those that the strategy inside does not have either.
        """
        known = vars(self)
        own = name in known or hasattr(type(self), name) or name.startswith("_")
        constructed = "_is_constructed" in known
        ours = type(self).__module__.partition(".")[0] == "flwr_ctma"
        if not own and constructed and (ours or hasattr(known["strategy"], name)):
            setattr(known["strategy"], name, value)
        else:
            super().__setattr__(name, value)

    def summary(self) -> None:
        """Let the strategy inside log its settings."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside configure the round."""
        if self.needs_run and self._run is None:
            kind = type(self).__name__
            raise parameter_error(
                "strategy",
                f"started by {kind}, or by a wrapper of flwr-ctma around it",
                "a loop that calls no hooks",
                f"Put {kind} outermost and call its `start`.",
            )
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy inside aggregate the round."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside configure the evaluation."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the strategy inside aggregate the evaluation."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def state_dict(self) -> dict[str, Any]:
        """Return all attributes of this layer; override it for other state."""
        return plain_attributes(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        set_attributes(self, state)


def setting(strategy: Strategy, name: str, default: Any) -> Any:
    """Return a setting of a strategy, or of a strategy inside it."""
    for layer in inside(strategy):
        if hasattr(layer, name):
            return getattr(layer, name)
    return default


def is_asynchronous(strategy: Strategy) -> bool:
    """Return whether a strategy, or a strategy inside it, has no rounds of replies."""
    hooked = (layer for layer in inside(strategy) if isinstance(layer, Hooks))
    return any(layer.is_asynchronous for layer in hooked)
