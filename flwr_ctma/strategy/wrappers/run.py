"""One run of a strategy, and the hooks of the strategies that it consists of.

The outermost strategy starts the run. Every layer takes part, whatever the order of the
layers: hooks are called around the whole, not at the place of the layer in the chain.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_ctma.errors import parameter_error

__all__ = ["Hooks", "Run", "inside", "run_strategy"]

# Kept here: a tournament exchanges the attribute while it runs other people's apps.
_FLOWER_START = Strategy.start


class Hooks:
    """The hooks of a strategy around a run; each does nothing unless overridden.

    Attributes
    ----------
    end_order : int
        Layers end a round in ascending order, and the inner ones first where it is
        equal: 0 may change metrics and model, 1 reports them, 2 saves them.
    needs_all_replies : bool
        Whether the strategy works on the replies of all nodes, so that it cannot be
        inside a `RobustStrategy`.
    needs_run : bool
        Whether the strategy works by its hooks alone, so that a loop that calls no
        hooks must not run it.
    repeatable : bool
        Whether two of the kind in one chain have a meaning.
    evidence : set of str
        Entries of `state_dict` about the nodes and the run, which no rollback takes
        back.
    is_asynchronous : bool
        Whether `run_rounds` replaces Flower's loop over rounds.
    """

    end_order: ClassVar[int] = 0
    needs_all_replies: ClassVar[bool] = False
    needs_run: ClassVar[bool] = False
    repeatable: ClassVar[bool] = True
    evidence: ClassVar[frozenset[str]] = frozenset()
    is_asynchronous: ClassVar[bool] = False
    _run: "Run | None" = None

    def prepare_grid(self, grid: Grid, num_rounds: int) -> Grid:
        """Return the grid to run all rounds on."""
        return grid

    def begin_run(self, run: "Run") -> None:
        """Prepare for a run, or take up one that an earlier process began."""

    def run_rounds(self, strategy: Strategy, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds of `strategy`; the arguments are those of `Strategy.start`."""
        return _FLOWER_START(strategy, *args, **kwargs)

    def begin_phase(self, phase: str, server_round: int, config: ConfigRecord) -> None:
        """Prepare for "train" or "evaluate", before messages are configured."""

    def configured(self, phase: str, messages: Sequence[Message]) -> None:
        """Note the messages that are about to be sent."""

    def aggregated(
        self, phase: str, replies: Sequence[Message], metrics: MetricRecord | None
    ) -> None:
        """Note the replies that arrived and the metrics that came of them."""

    def end_round(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Finish a round, given the metrics of the server; round 0 is the start."""

    def end_run(self, result: Result) -> Result:
        """Return the result of the run."""
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


@dataclass
class Run:
    """The state of a run, between the loop over rounds and the outermost strategy.

    Attributes
    ----------
    strategy : Strategy
        The outermost.
    grid : Grid
        The grid that all layers have prepared.
    arrays : ArrayRecord
        The current model.
    finished : int (default: 0)
        Rounds that an earlier process finished. The loop counts from 1 in every
        process; layers, clients and `evaluate_fn` see the number in the whole run.
    number : int
        The round under way; 0 before the first.
    metrics : MetricRecord | None
        Metrics that the server measured in this round.
    aggregation_seconds : float
        CPU time of this process for the aggregation of this round's updates.
    """

    strategy: Strategy
    grid: Grid
    arrays: ArrayRecord
    finished: int = 0
    number: int = 0
    metrics: MetricRecord | None = None
    aggregation_seconds: float = 0.0
    _is_open: bool = True
    _hooks: list[Hooks] = field(default_factory=list)

    def __post_init__(self) -> None:
        layers = inside(self.strategy)
        self._hooks = [layer for layer in layers if isinstance(layer, Hooks)]

    @property
    def layers(self) -> list[Strategy]:
        """All strategies, the outermost first."""
        return [*inside(self.strategy)]

    def resume(
        self, number: int, arrays: ArrayRecord, metrics: MetricRecord | None
    ) -> None:
        """Continue after a finished round."""
        self.finished = self.number = number
        self.arrays, self.metrics, self._is_open = arrays, metrics, False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """End the round before and configure the next."""
        self.arrays = arrays
        self.end_round()
        self.number, self._is_open = server_round + self.finished, True
        return self._configure("train", self.number, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the round."""
        replies = [*replies]
        number = server_round + self.finished
        began = time.process_time()
        arrays, metrics = self.strategy.aggregate_train(number, replies)
        self.aggregation_seconds = time.process_time() - began
        self.arrays = self.arrays if arrays is None else arrays
        for layer in self._hooks:
            layer.aggregated("train", replies, metrics)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Configure the evaluation of the round."""
        number = server_round + self.finished
        return self._configure("evaluate", number, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the evaluation of the round."""
        replies = [*replies]
        number = server_round + self.finished
        metrics = self.strategy.aggregate_evaluate(number, replies)
        for layer in self._hooks:
            layer.aggregated("evaluate", replies, metrics)
        return metrics

    def summary(self) -> None:
        """Log the settings of all layers."""
        self.strategy.summary()

    def evaluate(
        self, evaluate_fn: Any, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        """Measure a model on the server; a resumed run has measured its first."""
        if server_round > 0 or not self.finished:
            self.metrics = evaluate_fn(server_round + self.finished, arrays)
        return self.metrics

    def end_round(self) -> None:
        """End the round under way, once."""
        if not self._is_open:
            return
        self._is_open = False
        metrics, self.metrics = self.metrics, None
        inner_first = reversed(self._hooks)
        for layer in sorted(inner_first, key=lambda layer: layer.end_order):
            layer.end_round(self.number, metrics)

    def end(self, result: Any) -> Any:
        """End the last round and the run."""
        if isinstance(result, Result) and result.arrays:
            self.arrays = result.arrays
        self.end_round()
        if isinstance(result, Result) and not result.arrays:
            result.arrays = self.arrays  # nobody trained, as in a run of evaluations
        for layer in reversed(self._hooks):
            result = layer.end_run(result)
        return result

    def _configure(
        self,
        phase: str,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        for layer in self._hooks:
            layer.begin_phase(phase, number, config)
        configure = getattr(self.strategy, f"configure_{phase}")
        messages = [*configure(number, arrays, config, grid)]
        for layer in self._hooks:
            layer.configured(phase, messages)
        return messages

    def __enter__(self) -> "Run":
        """Let the layers know the run."""
        for layer in self._hooks:
            layer._run = self
        return self

    def __exit__(self, *error: object) -> None:
        """Let the layers forget the run."""
        for layer in self._hooks:
            layer._run = None


def run_strategy(
    strategy: Strategy,
    grid: Grid,
    initial_arrays: ArrayRecord,
    num_rounds: int | None,
    timeout: float,
    train_config: ConfigRecord | None,
    evaluate_config: ConfigRecord | None,
    evaluate_fn: Any,
    **settings: Any,
) -> Any:
    """Run the outermost strategy; see `flwr.serverapp.strategy.Strategy.start`.

    The loop over rounds is that of an asynchronous layer, or else the `start` of a
    layer that overrides it, or else Flower's. It calls a view of the layer, see
    `_view`, which leads its calls to the outermost strategy.
    """
    run = Run(strategy, grid, initial_arrays)
    layers = run.layers
    hooks = [layer for layer in layers if isinstance(layer, Hooks)]
    # Python has called the `start` of the outermost layer already.
    own = next((one for one in layers[1:] if _has_own_start(one)), None)
    if num_rounds is None:
        num_rounds = _default_rounds(own)
    with run:
        for layer in hooks:
            run.grid = layer.prepare_grid(run.grid, num_rounds)
        for layer in hooks:
            layer.begin_run(run)
        left = num_rounds - run.finished
        if left <= 0 < run.finished:
            return run.end(Result(arrays=run.arrays))
        evaluate = None
        if evaluate_fn is not None:

            def evaluate(server_round: int, arrays: ArrayRecord) -> Any:
                return run.evaluate(evaluate_fn, server_round, arrays)

        given: dict[str, Any] = {
            "grid": run.grid,
            "initial_arrays": run.arrays,
            "num_rounds": left,
            "timeout": timeout,
            "train_config": train_config,
            "evaluate_config": evaluate_config,
            "evaluate_fn": evaluate,
        }
        asynchronous = next((one for one in hooks if one.is_asynchronous), None)
        given |= settings
        if asynchronous is not None:
            result = asynchronous.run_rounds(_view(strategy, run), **given)
        elif own is not None:
            result = _call_own(_view(own, run).start, given)
        else:
            result = _FLOWER_START(_view(strategy, run), **given)
        return run.end(result)


def inside(strategy: Any) -> Iterator[Any]:
    """Yield a strategy, the strategy inside it, the strategy inside that one.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> [type(s).__name__ for s in inside(FedAvg())]
    ['FedAvg']
    """
    while isinstance(strategy, Strategy):
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def _has_own_start(strategy: Strategy) -> bool:
    """Whether a class other than Flower's `Strategy` and ours defines `start`."""
    owner = next(kind for kind in type(strategy).__mro__ if "start" in vars(kind))
    return owner.__module__.partition(".")[0] not in ("flwr", "flwr_ctma")


def _default_rounds(own: Strategy | None) -> int:
    """Return the number of rounds of a `start` of one's own, or else Flower's."""
    for start in (_FLOWER_START if own is None else type(own).start, _FLOWER_START):
        parameter = inspect.signature(start).parameters.get("num_rounds")
        if parameter is not None and isinstance(parameter.default, int):
            return parameter.default
    raise AssertionError("Flower's `start` has a default")


def _call_own(start: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Call a `start` of one's own, which need not take all that Flower's takes.

    Values that are Flower's defaults are left out. Names are those of Flower; a `start`
    with other names gets the values in Flower's order.
    """
    defaults = inspect.signature(_FLOWER_START).parameters
    needed = {
        name: value
        for name, value in given.items()
        if name == "num_rounds"
        or name not in defaults
        or (value is not defaults[name].default and value != defaults[name].default)
    }
    try:
        inspect.signature(start).bind(**needed)
    except TypeError:
        return start(*needed.values())
    return start(**needed)


def _view(strategy: Strategy, run: Run) -> Strategy:
    """Return a strategy's view for the loop over rounds.

    It shares the attributes of the strategy, and its class has all methods of the
    strategy's class but for the calls of the loop: these go to the run, and so to the
    outermost strategy, though the strategy has an attribute of the same name.
    """
    kind = type(strategy)
    if any(vars(base).get("__slots__") for base in kind.__mro__):
        raise parameter_error(
            "strategy",
            "a class without `__slots__` if it has a `start` of its own",
            kind.__name__,
            "Remove `__slots__`.",
        )
    calls = (
        "configure_train",
        "aggregate_train",
        "configure_evaluate",
        "aggregate_evaluate",
        "summary",
    )
    methods: dict[str, Any] = {
        name: _Routed(name, getattr(run, name)) for name in calls
    }
    methods["__module__"] = kind.__module__
    metaclass: Any = type(kind)
    view: Strategy = object.__new__(metaclass(kind.__name__, (kind,), methods))
    object.__setattr__(view, "__dict__", vars(strategy))
    return view


@dataclass(frozen=True)
class _Routed:
    """A method of a view. It has a `__set__`, so that no attribute comes before it."""

    name: str
    method: Any

    def __get__(self, view: Any, kind: type) -> Any:
        return self.method

    def __set__(self, view: Any, value: Any) -> None:
        vars(view)[self.name] = value
