"""Clients that minimise ‖x - target‖²/2; the first ones send ten times the opposite."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def target(width):
    return np.linspace(-1.0, 1.0, width)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Send the model less a noisy gradient, after as long as this partition takes."""
    config, partition = context.run_config, int(context.node_config["partition-id"])
    time.sleep(config["seconds"] * (10 if partition == config["slow"] else 1))
    x = message.content["arrays"]["x"].numpy()
    number = int(message.content["config"]["server-round"])
    noise = np.random.default_rng([partition, number]).normal(size=x.shape)
    step = x - target(len(x)) + 0.1 * noise
    if partition < config["num-malicious-nodes"]:
        step *= -10
    content = RecordDict({"metrics": MetricRecord({"partition-id": partition})})
    content["arrays"] = ArrayRecord({"x": Array(x - step)})
    return Message(content, reply_to=message)
