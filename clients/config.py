"""The run-config of the app, checked once: server and clients read the same values."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from clients.optimizers import Optimization, parse_optimizer
from flwr_ctma import parse_aggregator
from flwr_ctma.attacks import parse_attack
from flwr_ctma.errors import did_you_mean, parameter_error
from flwr_ctma.simulation.arrivals import parse_arrival_model
from flwr_ctma.strategy.asynchronous.weighting import parse_client_weighting
from flwr_ctma.strategy.backends import parse_backend
from flwr_ctma.strategy.compatibility import resolve_aggregator

__all__ = ["RunConfig"]

PARTITIONERS = ("iid", "dirichlet")
STEPPERS = ("clients", "server")
MODELS = ("small", "paper")
HELD_OUT = ("test", "validation")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RunConfig:
    """What a user may set with ``flwr run . --run-config '…'``.

    The defaults are those of ``[tool.flwr.app.config]`` in ``pyproject.toml``; keys are
    the field names in kebab case.

    Parameters
    ----------
    aggregator : str
        `fedavg` for Flower's own FedAvg, or a rule such as `ctma(gm)`.
    num_nodes : int
        n, the clients that the run waits for.
    num_malicious_nodes : int
        f, the first f partitions are malicious; the rule tolerates as many.
    attack : str
        What malicious clients do, such as `signflip`; `none` to let them be honest.
    dataset : str
        `digits`, a name on the Hugging Face Hub, or a local folder in its layout.
    partitioner : str
        `iid` or `dirichlet`.
    alpha : float
        Concentration of the Dirichlet partitioner: the smaller, the more heterogeneous.
    model : str
        `small`, or `paper`: the network with batch normalisation that the paper trains.
    optimizer : str
        `mu2`, `momentum` or `sgd`, with their settings: `mu2(floored)`.
    steps_on : str
        `clients`: each takes steps of its own and sends the model that they lead to.
        `server`: each sends one vector for the model that it was sent, and the server
        takes the step; so `mu2` is the exact method of the paper, `momentum` is RESAM.
    local_steps : int
        Mini-batches of a client in one round: a step for each, or one vector for all.
    batch_size : int
        Examples of one mini-batch.
    learning_rate : float
        Size of the steps.
    weight_decay : float
        λ, in [0, ∞): steps go along d + λx.
    clip_norm : float
        Largest norm of a gradient; 0 for none.
    num_server_rounds : int
        Rounds of federated learning.
    evaluate_every : int
        Rounds between two evaluations of the model on the server; the last counts too.
    evaluate_on : str
        `test`, or `validation`: a tenth of the training data, which no client has then.
    fraction_train : float
        Share of the clients that train in a round, in (0, 1].
    fraction_evaluate : float
        Share of the clients that evaluate after a round, in [0, 1].
    asynchronous : bool
        Whether the server takes a step at every arrival in place of rounds; a round is
        then as many arrivals as there are nodes.
    weighing : str
        What the clients' latest updates count there: `counts`, `alike` (as in rules
        without weights) or `staleness`.
    malicious_share : float
        λ in [0, 0.5), the share of all updates that malicious clients deliver: taken on
        trust (of clients that count alike, they are num-malicious-nodes). If 0, any
        num-malicious-nodes clients are held below half of the weight.
    arrivals : str
        `real`, or how fast clients answer on a virtual clock, in one process:
        `uniform`, `id`, `id2` (in proportion to it), `straggler`, or a CSV file.
    backend : str
        Where the server holds the replies of a round: `local`, `streaming` or `ray`,
        with its settings: `ray(workers=2, cpus=0)`.
    seed : int
        Fixes partitions, initial model, mini-batches and noise.
    device : str
        `auto`, `cpu` or `cuda`.
    output : str
        Folder for configuration and metrics by round; empty for none.

    Raises
    ------
    ValueError
        At the first key that is unknown, missing or out of its range.
    """

    aggregator: str
    num_nodes: int
    num_malicious_nodes: int
    attack: str
    dataset: str
    partitioner: str
    alpha: float
    model: str
    optimizer: str
    steps_on: str
    local_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    num_server_rounds: int
    evaluate_every: int
    evaluate_on: str
    fraction_train: float
    fraction_evaluate: float
    asynchronous: bool
    weighing: str
    malicious_share: float
    arrivals: str
    backend: str
    seed: int
    device: str
    output: str

    @classmethod
    def of(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        """Build it from the run-config of a Flower context; once from the same one."""
        return _built(tuple((k, type(v), v) for k, v in run_config.items()))

    @classmethod
    def _of(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        kinds = {_key(field.name): field.type for field in dataclasses.fields(cls)}
        for key in run_config:
            if key not in kinds:
                remedy = did_you_mean(key, kinds)
                allowed = f"one of the run-config's keys: {', '.join(kinds)}"
                raise parameter_error("run-config key", allowed, key, remedy)
        for key, kind in kinds.items():
            if key not in run_config:
                raise parameter_error(
                    key, f"set, to a value of type {_name(kind)}", None
                )
            value = run_config[key]
            fits = (int, float) if kind is float else kind
            if not isinstance(value, fits) or isinstance(value, bool) != (kind is bool):  # type: ignore[arg-type]
                raise parameter_error(key, f"of type {_name(kind)}", value)
        return cls(**{key.replace("-", "_"): run_config[key] for key in kinds})

    def __post_init__(self) -> None:
        """Check ranges, then what must fit together."""
        for name in (
            "num_nodes",
            "local_steps",
            "batch_size",
            "num_server_rounds",
            "evaluate_every",
        ):
            self._require(name, "at least 1", getattr(self, name) >= 1)
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            self._require(name, "finite and at least 0", 0 <= value < math.inf)
        for name in ("learning_rate", "alpha"):
            value = getattr(self, name)
            self._require(
                name, "finite and greater than 0", math.isfinite(value) and value > 0
            )
        self._require("fraction_train", "in (0, 1]", 0 < self.fraction_train <= 1)
        self._require(
            "fraction_evaluate", "in [0, 1]", 0 <= self.fraction_evaluate <= 1
        )
        self._require("seed", "in [0, 2**32)", 0 <= self.seed < 2**32)
        for name, allowed in (
            ("partitioner", PARTITIONERS),
            ("model", MODELS),
            ("steps_on", STEPPERS),
            ("evaluate_on", HELD_OUT),
            ("device", DEVICES),
        ):
            self._require(
                name, f"one of {', '.join(allowed)}", getattr(self, name) in allowed
            )
        self._require(
            "dataset",
            "`digits`, a name such as `ylecun/mnist`, or an existing folder",
            self.dataset == "digits" or _is_folder_or_name(self.dataset),
        )
        parse_attack(self.attack)
        parse_optimizer(self.optimizer)
        parse_client_weighting(self.weighing)
        parse_arrival_model(self.arrivals)
        parse_backend(self.backend)
        self._require_tolerable()
        self._require_served()

    def _require_tolerable(self) -> None:
        if self.aggregator == "fedavg":
            self._require(
                "num_malicious_nodes",
                f"in [0, num-nodes = {self.num_nodes}]",
                0 <= self.num_malicious_nodes <= self.num_nodes,
            )
            return
        parse_aggregator(self.aggregator)
        self._require(
            "num_malicious_nodes",
            f"at least 0 and less than half of num-nodes = {self.num_nodes}",
            0 <= 2 * self.num_malicious_nodes < self.num_nodes,
            "No rule withstands a malicious half.",
        )

    def _require_served(self) -> None:
        """Check what only one of rounds and single arrivals has."""
        self._require("malicious_share", "in [0, 0.5)", 0 <= self.malicious_share < 0.5)
        if not self.asynchronous:
            for name, value in (("malicious_share", 0), ("weighing", "counts")):
                self._require(
                    name, f"{value} in rounds", getattr(self, name) == value, _SWITCH
                )
            return
        for name, value in (("fraction_train", 1), ("fraction_evaluate", 0)):
            expected = f"{value} where `asynchronous` is true: all nodes only train"
            self._require(name, expected, getattr(self, name) == value)
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
            "Such are mean, cwmed, cwtm, gm, and ctma over these.",
        )

    def keys(self) -> dict[str, Any]:
        """Spell it as a run-config."""
        return {_key(name): value for name, value in dataclasses.asdict(self).items()}

    @property
    def folder(self) -> Path | None:
        """Where to write, if anywhere."""
        return Path(self.output).expanduser() if self.output else None

    @cached_property
    def optimization(self) -> Optimization:
        """What `optimizer` spells."""
        return parse_optimizer(self.optimizer)

    def evaluates(self, server_round: int) -> bool:
        """Tell whether the server evaluates the model after this round."""
        last = server_round == self.num_server_rounds
        return last or server_round % self.evaluate_every == 0

    def is_malicious(self, partition: int) -> bool:
        """Tell whether the client with this partition is malicious."""
        return partition < self.num_malicious_nodes

    @property
    def num_sampled(self) -> int:
        """Clients that train in a round."""
        return max(int(self.num_nodes * self.fraction_train), 1)

    def _require(self, name: str, expected: str, holds: bool, remedy: str = "") -> None:
        if not holds:
            raise parameter_error(_key(name), expected, getattr(self, name), remedy)


_SWITCH = "It is for `asynchronous=true`."


def _takes_weights(aggregator: str) -> bool:
    try:
        resolve_aggregator(aggregator, weighted=True)
    except ValueError:
        return False
    return True


# The apps ask at every message. Types are part of the key, as 1 equals True.
@lru_cache(maxsize=8)
def _built(items: tuple[tuple[str, type, Any], ...]) -> RunConfig:
    return RunConfig._of({key: value for key, _, value in items})


def _is_folder_or_name(dataset: str) -> bool:
    folder = Path(dataset).expanduser()
    local = dataset.startswith((".", "/", "~"))
    return folder.is_dir() if local else folder.is_dir() or dataset.count("/") <= 1


def _key(name: str) -> str:
    return name.replace("_", "-")


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
