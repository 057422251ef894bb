"""Omniscient attackers in a simulation: they reply after they saw the honest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_ctma.aggregators import Budget, Mean
from flwr_ctma.attacks import Attack
from flwr_ctma.attacks.collusion import Colluders, ObservedReply, stack
from flwr_ctma.attacks.messages import Sent, sent_numbers
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.messages.arrays import records_of
from flwr_ctma.strategy.compatibility import check_compatible
from flwr_ctma.strategy.robust import RobustStrategy
from flwr_ctma.strategy.wrappers.base import StrategyWrapper, inside, is_asynchronous

__all__ = ["AttackedStrategy"]


class AttackedStrategy(StrategyWrapper):
    """Let malicious clients collude, between the network and a strategy.

    In every round the attack sees the updates of all clients and replaces those of the
    malicious ones. A replaced reply is the client's own reply with other arrays. For
    simulations only.

    Parameters
    ----------
    strategy : Strategy
        `RobustStrategy` or any other strategy that aggregates rounds.
    attack : Attack | str
        The attack, or its spelling in a run-config. An attack that a client mounts
        alone changes nothing here: give it to `ByzantineMod`.
    num_malicious_nodes : int | None (default: None)
        Number of malicious nodes: the first nodes that appear, in the order of their
        ids. If None, the nodes with a `ByzantineMod` of the same attack, which mark
        their replies. Clients know their partition, so the same partitions are
        malicious in every run, whatever ids Flower draws for their nodes.
    seed : int (default: 0)
        Fixes, with the round, everything that the attack draws.

    Raises
    ------
    ValueError
        For a wrong setting, or a strategy inside that takes replies one by one.

    Notes
    -----
    A malicious node stays malicious. Attacks that search against a rule are aimed at
    the rule of the RobustStrategy inside, with the f that it is told in the round, or
    else at the mean of equal clients. In a round in which this is impossible, the log
    says so and the malicious clients are honest. These attacks know the row that the
    rule trusts or starts from; `server_update` is called once in a round. If a
    RobustStrategy lets clients claim weights, every attack knows the weights as the
    strategy bounds them.

    What attacks remember from round to round is part of `state_dict`, so `Checkpointed`
    resumes them.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = AttackedStrategy(FedAvg(), "alie", num_malicious_nodes=3)
    >>> print(strategy.colluders.attack, strategy.malicious_nodes)
    alie set()
    """

    needs_all_replies = True
    repeatable = False

    def __init__(
        self,
        strategy: Strategy,
        attack: Attack | str,
        num_malicious_nodes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(strategy)
        if is_asynchronous(strategy):
            raise parameter_error(
                "strategy",
                "one that aggregates rounds",
                type(strategy).__name__,
                "Attack its replies on their way: `AttackedGrid(grid, attack)`.",
            )
        self._robust = _robust(strategy)
        aimed = self._robust is not None or _averages(strategy)
        self.colluders = Colluders(attack, num_malicious_nodes, seed, aimed)
        self._messages: list[Message] = []

    @property
    def malicious_nodes(self) -> set[int]:
        """Ids of the nodes that are known to be malicious."""
        return self.colluders.nodes

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        log(INFO, "\t├──> Simulated attack:")
        log(INFO, "\t│\t├── Attack: %s", self.colluders.attack)
        who = self.colluders.num_malicious_nodes
        log(INFO, "\t│\t└── Malicious nodes: %s", "as marked" if who is None else who)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside configure the round, and keep its messages."""
        messages = super().configure_train(server_round, arrays, config, grid)
        self._messages = list(messages)
        self.colluders.recruit(grid.get_node_ids())
        self.colluders.announce(self._messages)
        return self._messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Replace the malicious replies, then let the strategy inside aggregate."""
        attacked = self._attacked(server_round, list(replies))
        return super().aggregate_train(server_round, attacked)

    def state_dict(self) -> dict[str, Any]:
        """Return the malicious nodes and what the attack remembers."""
        return self.colluders.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.colluders.load_state_dict(state)

    def _attacked(self, server_round: int, replies: list[Message]) -> list[Message]:
        sent = {message.metadata.message_id: message for message in self._messages}
        seen, model = {}, None
        for i, reply in enumerate(replies):
            message = sent.get(reply.metadata.reply_to_message_id)
            if message is not None and reply.has_content():
                model = _Model.of(message, model)
                seen[i] = ObservedReply(reply, message, model.arrays)
        self.colluders.register(seen.values())
        if self.colluders.joint_attack(server_round):
            self._collude(server_round, list(seen.values()))
        return [seen[i].reply if i in seen else r for i, r in enumerate(replies)]

    def _collude(self, server_round: int, seen: list[ObservedReply]) -> None:
        honest, malicious = self.colluders.divide(seen)
        if honest and malicious:
            budget = self._budget([*honest, *malicious])
            rule = self._robust.aggregator if self._robust else Mean()
            model = honest[0].model
            reference = self._robust.reference() if self._robust else None
            rows = self.colluders.craft(
                server_round,
                stack(honest),
                stack(malicious),
                budget.weights,
                (rule, budget.f),
                model,
                None if reference is None else honest[0].row(reference),
            )
            for reply, row in zip(malicious, rows, strict=True):
                reply.replace_update(row)
        elif not self.colluders.nodes:
            log(
                WARNING,
                "No attack in round %d: no reply is marked as malicious. Give the "
                "ClientApp the mod `ByzantineMod(%r, nodes=…)`.",
                *(server_round, self.colluders.attack),
            )

    def _budget(self, seen: Sequence[ObservedReply]) -> Budget:
        """Return f and the weights that the rule will get for these replies."""
        if self._robust is None:
            return Budget(len(seen), 0)
        f = min(self._robust.f, (len(seen) - 1) // 2)
        return self._robust.budget([reply.metrics for reply in seen], f)


@dataclass(frozen=True)
class _Model:
    """The arrays that were sent; those of the next message are mostly the same."""

    records: dict[str, ArrayRecord]
    arrays: Sent

    @classmethod
    def of(cls, message: Message, before: "_Model | None") -> "_Model":
        records = records_of(message.content, ArrayRecord)
        if before and _identities(records) == _identities(before.records):
            return before
        return cls(records, sent_numbers(message))


def _identities(records: Mapping[str, ArrayRecord]) -> dict[str, int]:
    return {name: id(record) for name, record in records.items()}


def _robust(strategy: Strategy) -> RobustStrategy | None:
    return next((s for s in inside(strategy) if isinstance(s, RobustStrategy)), None)


def _averages(strategy: Strategy) -> bool:
    try:
        check_compatible(strategy)
    except ValueError:
        return False
    return True
