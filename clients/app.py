"""The ClientApp: the first partitions are malicious, all others honest."""

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
def answer(message: Message, context: Context) -> Message:
    """Let the client that this partition has answer."""
    config = RunConfig.of(context.run_config)
    if config.is_malicious(int(context.node_config.get("partition-id", 0))):
        return malicious(config)(message, context)
    return honest.app(message, context)
