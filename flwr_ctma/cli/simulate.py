"""`flwr-ctma simulate`: an app in this process."""

from flwr_ctma.cli.common import (
    AppArgument,
    Batched,
    NumNodes,
    RunConfig,
    errors_as_sentences,
    grid_type,
)
from flwr_ctma.experiments.app import num_nodes_for, parse_app

__all__ = ["simulate"]


def simulate(
    app: AppArgument = ".",
    num_nodes: NumNodes = None,
    run_config: RunConfig = [],  # noqa: B006, typer copies it
    batched: Batched = False,
) -> None:
    """Run a Flower app once, in this process and without Ray.

    Nothing has to start, so this is the fastest way for tests and for short runs. The
    ServerApp and the ClientApp are those that `flwr run` runs.
    """
    with errors_as_sentences():
        flower_app = parse_app(app)
        settings = flower_app.run_config(*run_config)
        nodes = num_nodes_for(settings, num_nodes)
        if "num-nodes" in settings:
            settings["num-nodes"] = nodes
        flower_app.simulate(nodes, settings, grid_type(batched))
