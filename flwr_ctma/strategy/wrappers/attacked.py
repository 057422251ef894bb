"""Omniscient attackers, in a simulation: they see what the honest send, then answer."""

from collections.abc import Iterable, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_ctma.aggregators import Budget, Mean
from flwr_ctma.attacks import Attack
from flwr_ctma.attacks.collusion import Colluders, Seen, stack
from flwr_ctma.compat import log
from flwr_ctma.errors import parameter_error
from flwr_ctma.strategy.compatibility import check_compatible
from flwr_ctma.strategy.robust import RobustStrategy
from flwr_ctma.strategy.wrappers.base import StrategyWrapper, inside, is_asynchronous

__all__ = ["AttackedStrategy"]


class AttackedStrategy(StrategyWrapper):
    """Let malicious clients collude, between the network and a strategy.

    In every round the attack is shown the updates of all clients and replaces those of
    the malicious ones; each replaced reply is the client's own with other arrays. For
    simulations: a real server has no use for it.

    Parameters
    ----------
    strategy : Strategy
        `RobustStrategy` or any other, which gets the replies.
    attack : Attack | str
        What the colluders do, or its spelling in a run-config. One that a client can
        mount alone changes nothing here: give it to `ByzantineMod`.
    num_malicious_nodes : int | None (default: None)
        How many nodes are malicious: the first that appear, in the order of their ids.
        If None, those with a `ByzantineMod` of the same attack, which mark their
        replies. Clients know their partition, so the same partitions are malicious in
        every run, whatever ids Flower draws for their nodes.
    seed : int (default: 0)
        Fixes, with the round, all that the attack leaves to chance.

    Raises
    ------
    ValueError
        For a wrong setting, or a strategy inside that takes replies one by one.

    Notes
    -----
    A node once malicious stays so. Optimal attacks are aimed at the rule of the
    RobustStrategy inside, with the f that it is told in the round, or else at the mean
    of equal clients; in a round in which they cannot be, the log says so and the
    malicious clients are honest. Where a RobustStrategy lets clients claim weights,
    every attack knows them, as they are bounded there.

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
        self._asked: list[Message] = []

    @property
    def malicious_nodes(self) -> set[int]:
        """Ids of the nodes known to be malicious so far."""
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
        """Let the strategy inside configure the round; remember what it sends."""
        asked = super().configure_train(server_round, arrays, config, grid)
        self._asked = list(asked)
        self.colluders.recruit(grid.get_node_ids())
        for message in self._asked:
            self.colluders.announce(message)
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Replace the replies of the malicious, and let the strategy inside go on."""
        attacked = self._attacked(server_round, list(replies))
        return super().aggregate_train(server_round, attacked)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the malicious nodes follow from their ids."""
        return {}

    def _attacked(self, server_round: int, replies: list[Message]) -> list[Message]:
        asked = {message.metadata.message_id: message for message in self._asked}
        seen = {}
        for i, reply in enumerate(replies):
            message = asked.get(reply.metadata.reply_to_message_id)
            if message is not None and reply.has_content():
                seen[i] = Seen(reply, message)
        self.colluders.meet(seen.values())
        if self.colluders.acts(server_round):
            self._collude(server_round, list(seen.values()))
        return [seen[i].reply if i in seen else r for i, r in enumerate(replies)]

    def _collude(self, server_round: int, seen: list[Seen]) -> None:
        honest, own = self.colluders.divide(seen)
        if honest and own:
            budget = self._budget([*honest, *own])
            rule = self._robust.aggregator if self._robust else Mean()
            rows = self.colluders.forge(
                server_round,
                stack(honest),
                stack(own),
                budget.weights,
                (rule, budget.f),
            )
            for one, row in zip(own, rows, strict=True):
                one.answer(row)
        elif not self.colluders.nodes:
            log(
                WARNING,
                "No attack in round %d: no reply is marked as malicious. Give the "
                "ClientApp the mod `ByzantineMod(%r, nodes=…)`.",
                *(server_round, self.colluders.attack),
            )

    def _budget(self, seen: Sequence[Seen]) -> Budget:
        """Give f and weights as the rule will be told them of these replies."""
        if self._robust is None:
            return Budget(len(seen), 0)
        f = min(self._robust.f, (len(seen) - 1) // 2)
        return self._robust.budget([one.metrics for one in seen], f)


def _robust(strategy: Strategy) -> RobustStrategy | None:
    return next((s for s in inside(strategy) if isinstance(s, RobustStrategy)), None)


def _averages(strategy: Strategy) -> bool:
    try:
        check_compatible(strategy)
    except ValueError:
        return False
    return True
