"""The malicious client: what it answers is up to an attack."""

from functools import lru_cache

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import honest
from clients.config import RunConfig
from clients.honest import partition_of
from clients.task import load_train
from flwr_ctma.attacks import Attack, iter_attacks, parse_attack
from flwr_ctma.mods import ByzantineMod

__all__ = ["MaliciousClient", "malicious"]


class _Idle(ClientApp):
    """Reply with what was sent to train: colluders put theirs in its place, unseen."""

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type != MessageType.TRAIN:
            return honest.app(message, context)
        config = RunConfig.of(context.run_config)
        examples = load_train(config, *partition_of(context))
        metrics = MetricRecord({"num-examples": len(examples), "train-loss": 0.0})
        arrays = message.content.array_records["arrays"]
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)


class MaliciousClient(ClientApp):
    """A client that does as an honest one does, but for what its attack overrides.

    Parameters
    ----------
    attack : Attack | str
        What it does, or how that is spelled: `signflip`, `labelflip`, `noise`,
        `scaling(factor=10)`, `nonfinite`, …
    seed : int (default: 0)
        Fixes what the attack leaves to chance.
    client : ClientApp (default: honest.app)
        The client that it would be.
    """

    def __init__(
        self, attack: Attack | str, seed: int = 0, client: ClientApp = honest.app
    ) -> None:
        super().__init__()
        self._mod = ByzantineMod(attack, seed=seed)
        self._client = client

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message as the attack does."""
        return self._mod(message, context, self._client)


@lru_cache(maxsize=1)
def malicious(config: RunConfig) -> MaliciousClient:
    """Build the client that the run-config asks for."""
    attack = parse_attack(config.attack)
    # Attackers who see everything need not train themselves.
    trains = any(inner.needs_malicious for inner in iter_attacks(attack))
    return MaliciousClient(attack, config.seed, honest.app if trains else _Idle())
