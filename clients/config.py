"""The run-config of the app: server and clients check and read the same values."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

from clients.optimizers import Optimization, parse_optimizer
from clients.partitions import Partitioner, parse_partitioner
from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import parse_attack
from flwr_ctma.errors import did_you_mean, parameter_error
from flwr_ctma.simulation.arrivals import parse_arrival_model
from flwr_ctma.strategy.asynchronous.weighting import parse_client_weighting
from flwr_ctma.strategy.backends import parse_backend
from flwr_ctma.strategy.compatibility import resolve_aggregator

__all__ = ["RunConfig"]

Check = Callable[[str, Any], object]
"""Raise a ValueError if the value of a key is out of range."""


def _must_be(expected: str, holds: Callable[[Any], bool]) -> Check:
    def check(key: str, value: Any) -> None:
        if not holds(value):
            raise parameter_error(key, expected, value)

    return check


def _one_of(*allowed: str) -> Check:
    return _must_be(f"one of {', '.join(allowed)}", allowed.__contains__)


def _spelling(parse: Callable[[str], Any]) -> Check:
    return lambda key, value: parse(value)


def _is_dataset(name: str) -> bool:
    folder = Path(name).expanduser()
    local = name.startswith((".", "/", "~"))
    hub = not local and name.count("/") <= 1  # bundled ones included
    return hub or folder.is_dir()


_AT_LEAST_1 = _must_be("at least 1", lambda x: x >= 1)
_POSITIVE = _must_be("finite and greater than 0", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = _must_be("finite and at least 0", lambda x: 0 <= x < math.inf)
_DATASET = (
    "`digits`, `breast-cancer`, a name such as `ylecun/mnist`, or an existing folder"
)


@dataclass(frozen=True)
class RunConfig:
    """The keys of ``flwr run . --run-config '…'``, with type and range of each.

    ``[tool.flwr.app.config]`` in ``pyproject.toml`` has the defaults. Keys are the
    field names in kebab case.

    Parameters
    ----------
    aggregator : str
        `fedavg` for Flower's own FedAvg, or a rule such as `ctma(gm)`.
    memory : float
        β in [0, 1): how much of a client's past the rule judges it by; 0 for nothing.
        It needs a rule that weighs whole clients.
    num_nodes : int
        n, the number of clients that the run waits for.
    num_malicious_nodes : int
        The first so many partitions are malicious.
    assumed_malicious_nodes : int
        f, the number that the rule tolerates; −1 for num_malicious_nodes. In
        asynchronous runs −1 alone.
    attack : str
        Attack of the malicious clients, such as `signflip`; `none` for no attack.
    dataset : str
        `digits`, `breast-cancer`, a name on the Hugging Face Hub, or a local folder in
        its layout.
    partitioner : str
        `iid`, `dirichlet`, or sorted by class: `shards(per_client=2)`,
        `similarity(gamma=0.5)`.
    alpha : float
        Concentration of the Dirichlet partitioner; a small one makes clients differ.
    model : str
        `small` or `paper`: convolutions, those of the paper with batch normalisation;
        `transformer`: a vision transformer; `mlp`: one hidden layer.
    optimizer : str
        `mu2`, `momentum` or `sgd`, with their settings: `mu2(floored)`.
    steps_on : str
        `clients`: each client takes steps and sends the trained model. `server`: each
        client sends one vector for the received model, and the server takes the step;
        then `mu2` is the exact method of the paper and `momentum` is RESAM.
    local_steps : int
        Mini-batches of a client in a round: one step for each, or one vector for all.
    batch_size : int
        Examples in a mini-batch.
    learning_rate : float
        Size of the steps.
    weight_decay : float
        λ ≥ 0: steps go along d + λx.
    clip_norm : float
        Largest norm of a gradient; 0 for no clipping.
    num_server_rounds : int
        Rounds of federated learning.
    evaluate_every : int
        Rounds between two evaluations on the server; the last round has one, too.
    evaluate_on : str
        `test`, or `validation`: a tenth of the training data, withheld from clients.
    fraction_train : float
        Share of the clients that train in a round, in (0, 1].
    fraction_evaluate : float
        Share of the clients that evaluate after a round, in [0, 1].
    asynchronous : bool
        Whether the server takes a step at every arrival, without rounds. n arrivals
        then count as a round.
    client_weighting : str
        Weights of the clients' latest updates if `asynchronous`: `counts`, `equal` or
        `staleness(power=0.5)`.
    malicious_share : float
        λ in [0, 0.5): the share of all updates that malicious clients deliver, which
        the rule trusts. With equal weights, num-malicious-nodes decides. If 0, any
        num-malicious-nodes clients are held below half of the weight.
    arrivals : str
        `real`, or a model of how fast clients reply on a virtual clock, in one process:
        `uniform`, `id`, `id2` (in proportion to the id), `straggler`, or a CSV file.
    backend : str
        Where the server holds the replies of a round: `local`, or `ray`
        with settings: `ray(workers=2, cpus=0)`.
    seed : int
        Seed of partitions, initial model, mini-batches and noise.
    device : str
        `auto`, `cpu` or `cuda`.
    output : str
        Folder for configuration, metrics and final model; empty for none.

    Raises
    ------
    ValueError
        At the first key that is unknown, missing, of a wrong type or out of range.
    """

    aggregator: str
    memory: Annotated[float, _must_be("in [0, 1)", lambda x: 0 <= x < 1)]
    num_nodes: Annotated[int, _AT_LEAST_1]
    num_malicious_nodes: int
    assumed_malicious_nodes: Annotated[int, _must_be("at least -1", lambda x: x >= -1)]
    attack: Annotated[str, _spelling(parse_attack)]
    dataset: Annotated[str, _must_be(_DATASET, _is_dataset)]
    partitioner: Annotated[str, _spelling(parse_partitioner)]
    alpha: Annotated[float, _POSITIVE]
    model: Annotated[str, _one_of("small", "paper", "mlp", "transformer")]
    optimizer: Annotated[str, _spelling(parse_optimizer)]
    steps_on: Annotated[str, _one_of("clients", "server")]
    local_steps: Annotated[int, _AT_LEAST_1]
    batch_size: Annotated[int, _AT_LEAST_1]
    learning_rate: Annotated[float, _POSITIVE]
    weight_decay: Annotated[float, _NOT_NEGATIVE]
    clip_norm: Annotated[float, _NOT_NEGATIVE]
    num_server_rounds: Annotated[int, _AT_LEAST_1]
    evaluate_every: Annotated[int, _AT_LEAST_1]
    evaluate_on: Annotated[str, _one_of("test", "validation")]
    fraction_train: Annotated[float, _must_be("in (0, 1]", lambda x: 0 < x <= 1)]
    fraction_evaluate: Annotated[float, _must_be("in [0, 1]", lambda x: 0 <= x <= 1)]
    asynchronous: bool
    client_weighting: Annotated[str, _spelling(parse_client_weighting)]
    malicious_share: Annotated[float, _must_be("in [0, 0.5)", lambda x: 0 <= x < 0.5)]
    arrivals: Annotated[str, _spelling(parse_arrival_model)]
    backend: Annotated[str, _spelling(parse_backend)]
    seed: Annotated[int, _must_be("in [0, 2**32)", lambda x: 0 <= x < 2**32)]
    device: Annotated[str, _one_of("auto", "cpu", "cuda")]
    output: str

    @classmethod
    def of(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        """Return the checked run-config of a Flower context, from a cache if seen."""
        values = tuple(run_config.values())
        return _cached(tuple(run_config), values, tuple(map(type, values)))

    @classmethod
    def _of(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        declared = {_key(f.name): _declaration(f) for f in dataclasses.fields(cls)}
        for key in run_config:
            if key not in declared:
                remedy = did_you_mean(key, declared)
                allowed = f"one of the run-config's keys: {', '.join(declared)}"
                raise parameter_error("run-config key", allowed, key, remedy)
        for key, (kind, _) in declared.items():
            if key not in run_config:
                expected = f"set, to a value of type {kind.__name__}"
                raise parameter_error(key, expected, None)
            value = run_config[key]
            kinds = (int, float) if kind is float else (kind,)
            if not isinstance(value, kinds) or isinstance(value, bool) != (
                kind is bool
            ):
                raise parameter_error(key, f"of type {kind.__name__}", value)
        return cls(**{key.replace("-", "_"): run_config[key] for key in declared})

    def __post_init__(self) -> None:
        """Check each key, then combinations of keys."""
        for field in dataclasses.fields(self):
            for check in _declaration(field)[1]:
                check(_key(field.name), getattr(self, field.name))
        self._check_malicious_nodes()
        self._check_asynchronous()

    def _check_malicious_nodes(self) -> None:
        if self.aggregator == "fedavg":
            self._require(
                "memory", "0 for fedavg, which judges no client", not self.memory
            )
            self._require(
                "num_malicious_nodes",
                f"in [0, num-nodes = {self.num_nodes}]",
                0 <= self.num_malicious_nodes <= self.num_nodes,
            )
            return
        parse_aggregator(self.aggregator)
        for name, count in (
            ("num_malicious_nodes", self.num_malicious_nodes),
            ("assumed_malicious_nodes", self.f),
        ):
            self._require(
                name,
                f"at least 0 and less than half of num-nodes = {self.num_nodes}",
                0 <= 2 * count < self.num_nodes,
                "No rule withstands a malicious half.",
            )

    def _check_asynchronous(self) -> None:
        """Check the keys that have a meaning only in rounds, or only without."""
        if not self.asynchronous:
            for name, value in (("malicious_share", 0), ("client_weighting", "counts")):
                self._require(
                    name, f"{value} in rounds", getattr(self, name) == value, _SWITCH
                )
            return
        for name, value in (("fraction_train", 1), ("fraction_evaluate", 0)):
            expected = f"{value} where `asynchronous` is true: all nodes only train"
            self._require(name, expected, getattr(self, name) == value)
        self._require(
            "assumed_malicious_nodes",
            "-1 where `asynchronous` is true",
            self.assumed_malicious_nodes == -1,
            "`malicious-share` says what the rule is told.",
        )
        self._require(
            "backend",
            "local where `asynchronous` is true: there are no rounds",
            self.backend == "local",
        )
        weighted = self.aggregator != "fedavg" and _takes_weights(self.aggregator)
        self._require(
            "aggregator",
            "a rule with a weighted form where `asynchronous` is true",
            weighted,
            "These are mean, cwmed, cwtm, gm, and ctma over them.",
        )

    def keys(self) -> dict[str, Any]:
        """Return the run-config: values by key."""
        return {_key(name): value for name, value in dataclasses.asdict(self).items()}

    @property
    def folder(self) -> Path | None:
        """The output folder, or None."""
        return Path(self.output).expanduser() if self.output else None

    @cached_property
    def optimization(self) -> Optimization:
        """The optimizer that `optimizer` spells."""
        return parse_optimizer(self.optimizer)

    @cached_property
    def dealing(self) -> Partitioner:
        """The partitioner that `partitioner` and `alpha` spell."""
        return parse_partitioner(self.partitioner, self.alpha)

    def evaluates(self, server_round: int) -> bool:
        """Return whether the server evaluates the model after this round."""
        last = server_round == self.num_server_rounds
        return last or server_round % self.evaluate_every == 0

    def is_malicious(self, partition: int) -> bool:
        """Return whether the client of this partition is malicious."""
        return partition < self.num_malicious_nodes

    @property
    def f(self) -> int:
        """The number of malicious clients that the rule is told."""
        if self.assumed_malicious_nodes == -1:
            return self.num_malicious_nodes
        return self.assumed_malicious_nodes

    @property
    def num_sampled(self) -> int:
        """Number of clients that train in a round."""
        return max(int(self.num_nodes * self.fraction_train), 1)

    def _require(self, name: str, expected: str, holds: bool, remedy: str = "") -> None:
        if not holds:
            raise parameter_error(_key(name), expected, getattr(self, name), remedy)


_SWITCH = "Other values need `asynchronous=true`."


def _takes_weights(aggregator: str) -> bool:
    try:
        resolve_aggregator(aggregator, weighted=True)
    except ValueError:
        return False
    return True


# Clients read it at every message. Types are part of the key, as 1 equals True.
@lru_cache(maxsize=8)
def _cached(
    keys: tuple[str, ...], values: tuple[Any, ...], types: tuple[type, ...]
) -> RunConfig:
    return RunConfig._of(dict(zip(keys, values, strict=True)))


def _key(name: str) -> str:
    return name.replace("_", "-")


def _declaration(field: "dataclasses.Field[Any]") -> tuple[type, tuple[Check, ...]]:
    """Return the type and the checks that the annotation of a field declares."""
    if typing.get_origin(field.type) is Annotated:
        kind, *checks = typing.get_args(field.type)
        return kind, tuple(checks)
    return typing.cast(type, field.type), ()
