"""Step in where an app starts its strategy, so that the app needs no change."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from flwr.serverapp.strategy import Result, Strategy

__all__ = ["fixed_sampling", "wrapped_strategies"]


@contextlib.contextmanager
def wrapped_strategies(wrap: Callable[[Strategy], Strategy]) -> Iterator[list[str]]:
    """Wrap every strategy that is started within the block, then start the wrapper.

    The call of `start` is replaced on `Strategy` and on every subclass that overrides
    it. Calls from within a running `start` are left alone: the wrapper decides how the
    loop of the wrapped strategy runs.

    Parameters
    ----------
    wrap : callable
        Maps the strategy that the app starts to the one that runs.

    Yields
    ------
    list of str
        Names of the classes of the strategies started so far.
    """
    started: list[str] = []
    running = False

    def intercepted(original: Callable[..., Result]) -> Callable[..., Result]:
        def start(self: Strategy, *args: Any, **kwargs: Any) -> Result:
            nonlocal running
            if running:
                return original(self, *args, **kwargs)
            started.append(type(self).__name__)
            running = True
            try:
                return wrap(self).start(*args, **kwargs)
            finally:
                running = False

        return start

    originals = {kind: kind.__dict__["start"] for kind in _classes_with_start(Strategy)}
    try:
        for kind, original in originals.items():
            kind.start = intercepted(original)
        yield started
    finally:
        for kind, original in originals.items():
            kind.start = original


@contextlib.contextmanager
def fixed_sampling(seed: int) -> Iterator[None]:
    """Seed the random state with which Flower's strategies sample nodes."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _classes_with_start(base: Any) -> Iterator[Any]:
    if "start" in base.__dict__:
        yield base
    for kind in base.__subclasses__():
        yield from _classes_with_start(kind)
