"""The rules and attacks that an experiment names, those of the app among them."""

from collections.abc import Iterable

from flwr_ctma.aggregators import parse_aggregator
from flwr_ctma.attacks import parse_attack
from flwr_ctma.compat import LoadClientAppError, LoadServerAppError
from flwr_ctma.experiments.app import App

__all__ = ["check_names"]


def check_names(app: App, aggregators: Iterable[str], attacks: Iterable[str]) -> None:
    """Check that rules and attacks are known, perhaps once the app is imported.

    The modules of an app may define rules and attacks: `class Mine(Attack,
    name="mine")`. Importing an app takes seconds, so it is imported for an unknown name
    only. The rule `fedavg` is none.

    Raises
    ------
    ValueError
        For a name that neither the library nor the app has.
    """
    aggregators, attacks = [*aggregators], [*attacks]
    try:
        _parse(aggregators, attacks)
    except ValueError as unknown:
        try:
            app.load()
        except (ImportError, LoadClientAppError, LoadServerAppError) as error:
            reason = " ".join(str(error).split())
            sentence = f"{unknown} The app may define it, and cannot be imported"
            raise ValueError(f"{sentence}: {reason}.") from error
        _parse(aggregators, attacks)


def _parse(aggregators: Iterable[str], attacks: Iterable[str]) -> None:
    for attack in attacks:
        parse_attack(attack)
    for rule in aggregators:
        if rule != "fedavg":
            parse_aggregator(rule)
