"""A client that steps halfway to a point of its own, near (1, …, 1)."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message | None:
    client = context.node_config["partition-id"]
    server_round = message.content["config"]["server-round"]
    if client < context.run_config["silent"] and server_round > 1:
        time.sleep(context.run_config["sleeps"])
        return None
    sent = message.content["arrays"]["w"].numpy()
    goal = 1 + np.random.default_rng(client).normal(0, 0.01, sent.shape)
    arrays = ArrayRecord({"w": Array((sent + goal) / 2)})
    told = {
        "client": client,
        "round": server_round,
        "loss": float(np.linalg.norm(sent - goal)),
        "num-examples": 1,
    }
    content = {"arrays": arrays, "metrics": MetricRecord(told)}
    return Message(RecordDict(content), reply_to=message)
