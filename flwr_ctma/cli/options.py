"""Arguments and options that several commands have."""

import os
from importlib.util import find_spec
from typing import Annotated

import typer

from flwr_ctma.errors import parameter_error
from flwr_ctma.simulation.batched import BatchedGrid
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.simulation.ray import RayGrid

__all__ = [
    "NUM_CORES",
    "AppArgument",
    "Attacks",
    "Batched",
    "DryRun",
    "Json",
    "Last",
    "Metric",
    "NumNodes",
    "Quiet",
    "Ray",
    "RunConfig",
    "Seeds",
    "Workers",
    "grid_type",
]

AppArgument = Annotated[
    str,
    typer.Argument(
        metavar="APP",
        help="Folder of the Flower app, or `module:server_app,module:client_app`.",
    ),
]
RunConfig = Annotated[
    list[str],
    typer.Option(
        "--run-config",
        "-c",
        help="Values for the app's run-config, as for `flwr run`: "
        "'key=1 other=\"x\"'. Repeatable.",
    ),
]
Batched = Annotated[
    bool,
    typer.Option(
        "--batched",
        help="Compute the clients of a round together, which is faster; needs an app "
        "that calls `run_batched`.",
    ),
]
Ray = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Run the clients on all cores, in Ray actors; needs the extra `app`.",
    ),
]
NumNodes = Annotated[
    int | None,
    typer.Option(
        help="Number of clients.",
        min=1,
        show_default="the app's key num-nodes, or 17",
    ),
]
Attacks = Annotated[
    list[str], typer.Option(help="Attack of the malicious clients. Repeatable.")
]
Seeds = Annotated[list[int], typer.Option(help="Seed of a run. Repeatable.")]
Metric = Annotated[
    str,
    typer.Option(help="Metric to compare, as the app reports it; larger is better."),
]
Last = Annotated[
    int,
    typer.Option(help="Average the metric over this many last evaluations.", min=1),
]
Workers = Annotated[
    int,
    typer.Option(
        help="Number of runs at the same time; each uses one core.",
        min=1,
        show_default="number of cores",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show the plan and an estimate of the time; run nothing."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Write the results to the standard output as one JSON object."
    ),
]


def _num_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


NUM_CORES = _num_cores()


def grid_type(batched: bool, ray: bool = False) -> type[InProcessGrid]:
    """Return the grid that runs the clients."""
    if not ray:
        return BatchedGrid if batched else InProcessGrid
    if batched:
        raise parameter_error(
            "--batched",
            "given without --ray",
            "both",
            "A batch is computed in one process, which may use all cores.",
        )
    if find_spec("ray") is None:
        remedy = "Install Ray: `pip install 'flwr[simulation]'`."
        raise parameter_error("--ray", "given where Ray is installed", True, remedy)
    return RayGrid
