"""Advice on a rule, from what the benchmark measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_ctma.errors import parameter_error
from flwr_ctma.experiments.tournament import undefined_reason
from flwr_ctma.sampling import min_sample_size

__all__ = ["Advice", "advise", "shipped_results"]

_ROUNDS = 500
_FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Advice:
    """The rule that lost least in the nearest regime of the benchmark.

    Attributes
    ----------
    num_nodes : int
        Clients of the app.
    malicious : int
        Malicious clients that the rule tolerates.
    sampled : int
        Clients to ask in a round, at least: in 500 rounds, no malicious majority has a
        probability of at least 99 %.
    entry : Mapping[str, Any]
        What the benchmark measured for the rule; see `summarize`.
    others : sequence of str
        Rules whose interval in the worst attack overlaps the rule's, with the memory
        that they had.
    command : str
        The command that measured it.
    seeds : int
        Number of seeds.
    """

    num_nodes: int
    malicious: int
    sampled: int
    entry: Mapping[str, Any]
    others: Sequence[str]
    command: str
    seeds: int

    @property
    def line(self) -> str:
        """The line for a ServerApp."""
        memory = self.entry["memory"]
        more = f", memory={memory}" if memory else ""
        return (
            f'RobustStrategy(FedAvg(), "{self.entry["rule"]}", '
            f"num_malicious_nodes={self.malicious}{more})"
        )

    @property
    def run_config(self) -> dict[str, Any]:
        """The advice as keys of this repository's app."""
        return {
            "aggregator": self.entry["rule"],
            "memory": self.entry["memory"],
            "num-nodes": self.num_nodes,
            "num-malicious-nodes": self.malicious,
        }


def shipped_results() -> list[dict[str, Any]]:
    """Return the results of the suites `digits` and `server-steps`.

    Each is an object of `summarize` with the `command` that measured it.
    """
    found = []
    for name in ("digits", "server-steps"):
        content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        found += [{**one, "command": content["command"]} for one in content["results"]]
    return found


def advise(
    results: Sequence[Mapping[str, Any]],
    num_nodes: int,
    malicious: int,
    steps: str = "clients",
    data: str = "differ",
) -> Advice:
    """Return the rule with the smallest loss in its worst attack.

    The regime is the measured one with the smallest share of malicious clients that is
    at least `malicious / num_nodes`.

    Parameters
    ----------
    results : sequence of Mapping[str, Any]
        What benchmarks measured; see `shipped_results`.
    num_nodes : int
        Clients of the app.
    malicious : int
        The largest number of malicious clients.
    steps : str (default: "clients")
        `clients` if clients train between rounds, `server` if the server takes steps.
    data : str (default: "differ")
        `alike` or `differ`: the data of the clients.

    Raises
    ------
    ValueError
        For a wrong parameter, where the benchmark has no regime near, and where it has
        no rule that is defined for these numbers.

    Examples
    --------
    >>> advise(shipped_results(), 17, 5, data="alike").num_nodes
    17
    """
    for name, value, allowed in (
        ("steps", steps, ("clients", "server")),
        ("data", data, ("alike", "differ")),
    ):
        if value not in allowed:
            raise parameter_error(name, f"one of {', '.join(allowed)}", value)
    if not 0 < malicious < num_nodes / 2:
        expected = f"at least 1 and less than half of {num_nodes} clients"
        remedy = "No rule withstands a malicious half."
        raise parameter_error("malicious", expected, malicious, remedy)
    known = [one for one in results if (one["steps"], one["data"]) == (steps, data)]
    if not known:
        measured = " or ".join(
            f"`--steps {one} --data {other}`"
            for one, other in sorted({(one["steps"], one["data"]) for one in results})
        )
        remedy = "For others, compare rules in your app with `flwr-ctma tournament`."
        found = f"{steps}, with data = {data}"
        raise parameter_error("steps", f"measured: {measured}", found, remedy)
    shares = sorted({_share(one) for one in known})
    enough = [share for share in shares if share >= malicious / num_nodes]
    if not enough:
        most = max(known, key=_share)
        needed = -(-malicious * most["num-nodes"] // most["malicious"])
        raise parameter_error(
            "malicious",
            f"at most {most['malicious']} of {most['num-nodes']}, the largest share "
            f"measured for `--steps {steps} --data {data}`",
            f"{malicious} of {num_nodes}",
            f"Ask {needed} clients or more, or compare rules in your app with "
            "`flwr-ctma tournament`.",
        )
    rows = [
        one
        for one in known
        if _share(one) == enough[0]
        and not undefined_reason(one["rule"], num_nodes, malicious)
    ]
    if not rows:
        rules = ", ".join(
            dict.fromkeys(one["rule"] for one in known if _share(one) == enough[0])
        )
        raise parameter_error(
            "malicious",
            f"so few that a measured rule ({rules}) is defined for {num_nodes} clients",
            malicious,
            "Ask more clients, or compare other rules in your app with "
            "`flwr-ctma tournament`.",
        )
    best, *rest = sorted(rows, key=lambda one: float(one["loss"]["mean"]))
    return Advice(
        num_nodes,
        malicious,
        min_sample_size(num_nodes, malicious, rounds=_ROUNDS),
        best,
        [_name(one) for one in rest if _overlap(best["loss"], one["loss"])],
        best["command"],
        len(best["seeds"]),
    )


def _name(entry: Mapping[str, Any]) -> str:
    memory = entry["memory"]
    return f"{entry['rule']} with memory {memory:g}" if memory else str(entry["rule"])


def _share(entry: Mapping[str, Any]) -> float:
    return float(entry["malicious"] / entry["num-nodes"])


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    a, b = first["interval"], second["interval"]
    return a is None or b is None or bool(a[0] <= b[1] and b[0] <= a[1])
