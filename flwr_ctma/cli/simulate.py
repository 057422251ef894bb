"""`flwr-ctma simulate`: an app in this process, or with its clients in Ray actors."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from typing import Any

from flwr.serverapp.strategy import Strategy

from flwr_ctma.cli import options
from flwr_ctma.cli.runs import refuse_unused
from flwr_ctma.cli.screen import Screen, errors_as_sentences
from flwr_ctma.experiments.app import num_nodes_for, parse_app
from flwr_ctma.experiments.interposition import wrapped_strategies
from flwr_ctma.strategy import Observed

__all__ = ["simulate"]


def simulate(
    app: options.AppArgument = ".",
    num_nodes: options.NumNodes = None,
    run_config: options.RunConfig = [],  # noqa: B006, typer copies it
    batched: options.Batched = False,
    ray: options.Ray = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Run a Flower app once, in this process.

    It runs the ServerApp and the ClientApp that `flwr run` runs. No process has to
    start, so this is the fastest way to test an app. With `--ray`, the clients of a
    round run on all cores: use it where their work takes more time than their messages.
    `--json` writes an entry for each round: metrics, and the clients that were asked,
    rejected or trimmed.
    """
    screen = Screen(quiet, json)
    rounds: list[dict[str, Any]] = []

    def observe(strategy: Strategy) -> Strategy:
        return Observed(strategy, rounds.append)

    with errors_as_sentences():
        flower_app = parse_app(app)
        settings = flower_app.run_config(*run_config)
        nodes = num_nodes_for(settings, num_nodes)
        if "num-nodes" in settings:
            settings["num-nodes"] = nodes
        refuse_unused(run_config, [settings], "`--num-nodes` sets it.")
        flower_app.check(settings)
        with (
            _output_of_the_app(quiet, json),
            wrapped_strategies(observe) if json else nullcontext(),
        ):
            flower_app.simulate(nodes, settings, options.grid_type(batched, ray))
    screen.json({"rounds": rounds})


@contextmanager
def _output_of_the_app(quiet: bool, as_json: bool) -> Iterator[None]:
    """Hide what the app prints and logs, or keep it off the standard output."""
    logger = logging.getLogger("flwr")
    level = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    elsewhere = StringIO() if quiet else sys.stderr
    try:
        with redirect_stdout(elsewhere) if quiet or as_json else nullcontext():
            yield
    finally:
        logger.setLevel(level)
