"""`flwr-ctma advise`: the rule that the benchmark found best in a regime."""

from typing import Annotated

import typer

from flwr_ctma.cli import options
from flwr_ctma.cli.screen import Screen, errors_as_sentences
from flwr_ctma.experiments import advice
from flwr_ctma.report.benchmark import points

__all__ = ["advise"]

_LARGE = 0.2


def advise(
    num_nodes: Annotated[int, typer.Option(help="Number of clients.", min=1)] = 17,
    malicious: Annotated[
        int, typer.Option(help="Largest number of malicious clients.", min=1)
    ] = 5,
    steps: Annotated[
        str,
        typer.Option(
            help="`clients`: clients train between rounds, as with FedAvg. "
            "`server`: clients send a momentum, and the server takes the step."
        ),
    ] = "clients",
    data: Annotated[
        str, typer.Option(help="Data of the clients: `alike` or `differ`.")
    ] = "differ",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Name a rule for an app, with what it was measured to lose.

    The numbers are results of `flwr-ctma benchmark digits` and `server-steps`, which
    the package ships. A regime that was not measured is an error.
    """
    screen = Screen(quiet, json)
    with errors_as_sentences():
        found = advice.advise(
            advice.shipped_results(), num_nodes, malicious, steps, data
        )
    one = found.entry
    screen.print(
        found.line,
        "",
        f"Measured with {one['malicious']} of {one['num-nodes']} clients malicious, "
        f"steps on the {one['steps']}, data {_DATA[one['data']]}, {found.seeds} seeds. "
        "Points of accuracy lost to the mean without an attack, 95 % intervals:",
        f"  without an attack: {points(one['cost'])}",
        f"  in the worst of {len(one['scores']) - 1} attacks, "
        f"{one['worst']['attack']}: {points(one['loss'])}",
    )
    if one["loss"]["mean"] > _LARGE:
        screen.print(
            "No measured rule holds well in this regime. First lower the share of "
            "malicious clients: authenticate clients, and admit more honest ones."
        )
    if found.others:
        screen.print(f"Not clearly worse: {', '.join(found.others)}.")
    if one["memory"]:
        screen.print("The memory takes a row of the model's size for every node.")
    least = f", or at least {found.sampled}" if found.sampled < num_nodes else ""
    screen.print(
        f"Ask all {num_nodes} clients in each round{least}: of fewer, malicious ones "
        "may be the majority.",
        "Small models on digits measured this. Compare rules in your own app with "
        "`flwr-ctma tournament`.",
        f"Command: {found.command}",
    )
    screen.json(
        {
            "run-config": found.run_config,
            "sampled": found.sampled,
            "regime": {k: one[k] for k in ("steps", "data", "num-nodes", "malicious")},
            "cost": one["cost"],
            "loss": one["loss"],
            "worst": one["worst"],
            "others": list(found.others),
            "command": found.command,
        }
    )


_DATA = {"alike": "alike", "differ": "that differ"}
