"""The malicious client: an attack decides its replies."""

from functools import lru_cache

from flwr.app import (
    ArrayRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from clients import honest
from clients.config import RunConfig
from clients.honest import partition_of
from clients.task import load_train
from flwr_ctma.attacks import Attack, iter_attacks, parse_attack
from flwr_ctma.messages.arrays import records_of
from flwr_ctma.mods import ByzantineMod

__all__ = ["MaliciousClient", "malicious"]


class _Idle(ClientApp):
    """Reply with the received model, which `AttackedStrategy` replaces unread."""

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type != MessageType.TRAIN:
            return honest.app(message, context)
        config = RunConfig.of(context.run_config)
        examples = load_train(config, *partition_of(context))
        metrics = MetricRecord({"num-examples": len(examples), "train-loss": 0.0})
        arrays = records_of(message.content, ArrayRecord)["arrays"]
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)


class MaliciousClient(ClientApp):
    """An honest client with the replies that an attack changes.

    Parameters
    ----------
    attack : Attack | str
        The attack or its spelling: `signflip`, `labelflip`, `noise`,
        `scaling(factor=10)`, `nonfinite`, …
    seed : int (default: 0)
        Seed of the attack's random numbers.
    client : ClientApp (default: honest.app)
        The honest client.
    """

    def __init__(
        self, attack: Attack | str, seed: int = 0, client: ClientApp = honest.app
    ) -> None:
        super().__init__()
        self._mod = ByzantineMod(attack, seed=seed)
        self._client = client

    def __call__(self, message: Message, context: Context) -> Message:
        """Reply to a message as the attack decides."""
        return self._mod(message, context, self._client)


@lru_cache(maxsize=1)
def malicious(config: RunConfig) -> MaliciousClient:
    """Build the malicious client of a run-config."""
    attack = parse_attack(config.attack)
    # Attackers who see everything need not train themselves.
    trains = any(inner.needs_malicious for inner in iter_attacks(attack))
    return MaliciousClient(attack, config.seed, honest.app if trains else _Idle())
