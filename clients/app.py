"""The ClientApp: the first partitions are malicious, the others are honest."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import honest
from clients.config import RunConfig
from clients.malicious import malicious

__all__ = ["app"]

app = ClientApp()


@app.train()
@app.evaluate()
@app.query()
def reply(message: Message, context: Context) -> Message:
    """Let the client of this partition reply."""
    config = RunConfig.of(context.run_config)
    if config.is_malicious(int(context.node_config.get("partition-id", 0))):
        return malicious(config)(message, context)
    return honest.app(message, context)
