"""`flwr-ctma simulate`: an app in this process."""

from pathlib import Path
from typing import Annotated

import typer

from flwr_ctma.cli.common import Batched, Folder, RunConfig, in_a_sentence, kind_of_grid
from flwr_ctma.experiments.app import FlowerApp

__all__ = ["simulate"]


def simulate(
    folder: Folder = Path(),
    num_nodes: Annotated[
        int | None,
        typer.Option(
            help="Number of clients; the app's key `num-nodes`, or 17, if not given.",
            min=1,
        ),
    ] = None,
    run_config: RunConfig = [],  # noqa: B006
    batched: Batched = False,
) -> None:
    """Run a Flower app in this process, its clients one after the other.

    Without Ray there is nothing to start and nothing to wait for: for tests, and for
    many short runs. The apps are the very ones that `flwr run` runs.
    """
    with in_a_sentence():
        flower_app = FlowerApp(folder)
        settings = flower_app.run_config(*run_config)
        nodes = num_nodes or int(settings.get("num-nodes", 17))
        if "num-nodes" in settings:
            settings["num-nodes"] = nodes
        flower_app.simulate(nodes, settings, kind_of_grid(batched))
