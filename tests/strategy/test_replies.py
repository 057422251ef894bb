"""A round and the messages that it asks."""

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from flwr_ctma.messages.schema import read_metrics
from flwr_ctma.simulation.grid import InProcessGrid
from flwr_ctma.strategy.round.replies import Round


def asked(*ids):
    InProcessGrid(ClientApp(), 1)  # who sends messages
    messages = [Message(RecordDict(), 2 + i, "train") for i in range(len(ids))]
    for message, key in zip(messages, ids, strict=True):
        message.metadata.__dict__["_message_id"] = key
    return Round("train", messages, 0, read_metrics)


def test_each_message_belongs_to_the_node_it_was_sent_to():
    assert asked("a", "b").nodes == {"a": 2, "b": 3}


@pytest.mark.parametrize("ids", [("", ""), ("a", "b", "a")])
def test_messages_without_ids_of_their_own_are_named(ids):
    with pytest.raises(ValueError, match=r"`messages` should be sent.* Use a Grid tha"):
        asked(*ids).nodes  # noqa: B018
