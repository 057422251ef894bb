"""Turn any ClientApp into a Byzantine one."""

from collections.abc import Callable, Collection
from typing import cast

import numpy as np
from flwr.app import Context, Message, MessageType, MetricRecord
from flwr.clientapp import ClientApp

from flwr_ctma.attacks import Attack, parse_attack
from flwr_ctma.attacks.messages import server_round
from flwr_ctma.compat import ClientAppCallable
from flwr_ctma.errors import parameter_error

__all__ = ["ByzantineMod"]

_STATE = "flwr-ctma.byzantine"


class ByzantineMod:
    """Flower mod that makes clients reply as an attack does.

    It works with apps of the Message API and with legacy ones with a `client_fn`:
    `ClientApp(mods=[ByzantineMod(SignFlip())])` where the app is built, or
    `app = ByzantineMod(SignFlip()).around(app)` for an app that stays as it is.

    Parameters
    ----------
    attack : Attack | str
        The attack of the malicious clients, or its spelling in a run-config. Attacks
        can start, stop and change by round: see `During`, `Then` and `Alternate`.
    nodes : int | Collection[int] | Callable[[Context], bool] | None (default: None)
        The malicious nodes: the first partitions up to a number, a set of partitions,
        or those for which a function is true; every node if None.
    seed : int (default: 0)
        Fixes, with a node's partition (or node id) and the round, everything that an
        attack draws.

    Raises
    ------
    ValueError
        If `nodes` names partitions and the node's config has no `partition-id`, or if
        this app does not support the attack (the message says what is missing). Flower
        reports it as the client's error.

    Notes
    -----
    Omniscient attacks, such as `ALIE`, need to see the honest updates: the client
    trains honestly, marks its reply, and `AttackedStrategy` on the server replaces it.

    The round is `server-round` (or `server_round`) of the message's config, which
    Flower's strategies send, or the message's group id, which its legacy server sends.
    Otherwise it is the number of trainings of the node so far.

    Examples
    --------
    >>> from flwr_ctma.attacks import SignFlip
    >>> app = ClientApp(mods=[ByzantineMod(SignFlip(), nodes=3)])
    >>> ByzantineMod("during(signflip, start=5, probability=0.5)", nodes={0, 4})
    ByzantineMod(during(signflip, start=5, probability=0.5), nodes={0, 4}, seed=0)
    """

    def __init__(
        self,
        attack: Attack | str,
        nodes: int | Collection[int] | Callable[[Context], bool] | None = None,
        seed: int = 0,
    ) -> None:
        self.attack = parse_attack(attack)
        if isinstance(nodes, int) and nodes < 0:
            raise parameter_error("nodes", "0 or more", nodes)
        if seed < 0:
            raise parameter_error("seed", "0 or more", seed)
        self.nodes = nodes
        self.seed = seed

    def __repr__(self) -> str:
        """Show the parameters."""
        return f"ByzantineMod({self.attack}, nodes={self.nodes}, seed={self.seed})"

    def __call__(
        self, message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        """Answer a message, as the attack does if the node is malicious."""
        category = message.metadata.message_type.partition(".")[0]
        answers = {MessageType.TRAIN: "train", MessageType.EVALUATE: "evaluate"}
        if category not in answers or not self.is_malicious(context):
            return call_next(message, context)
        number = _round(message, context, category)
        node = int(context.node_config.get("partition-id", context.node_id))
        rng = np.random.default_rng([self.seed, node, number])
        answer = getattr(self.attack.at(number, rng), answers[category])
        # A client may be silent, which Flower's type of a mod does not allow for.
        return cast(Message, answer(message, context, call_next, rng))

    def is_malicious(self, context: Context) -> bool:
        """Return whether a node is malicious."""
        if self.nodes is None:
            return True
        if callable(self.nodes):
            return self.nodes(context)
        if "partition-id" not in context.node_config:
            raise parameter_error(
                "nodes",
                "a function of the Context where nodes have no partition-id",
                self.nodes,
                "Or start the SuperNode with `--node-config partition-id=…`.",
            )
        partition = int(context.node_config["partition-id"])
        if isinstance(self.nodes, int):
            return partition < self.nodes
        return partition in self.nodes

    def around(self, app: ClientApp) -> ClientApp:
        """Return an app that answers every message through this mod.

        Parameters
        ----------
        app : ClientApp
            Any app; it is not changed.

        Returns
        -------
        ClientApp
        """
        return _Around(self, app)


class _Around(ClientApp):
    def __init__(self, mod: ByzantineMod, app: ClientApp) -> None:
        super().__init__()
        self._mod = mod
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        return self._mod(message, context, self._app)


def _round(message: Message, context: Context, category: str) -> int:
    number = server_round(message)
    if number is not None:
        return number
    record = context.state.metric_records.get(_STATE, MetricRecord({"trainings": 0}))
    trainings = cast(int, record["trainings"]) + (category == MessageType.TRAIN)
    context.state[_STATE] = MetricRecord({"trainings": trainings})
    return trainings
