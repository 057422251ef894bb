"""Flower's own grid of a deployment, on a SuperLink that is played in this process."""

import hashlib
import json
import threading
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    GetNodesResponse,
    PullAppMessagesResponse,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from flwr_ctma.compat import identify_server

CHUNK = ArrayChunk(memoryview(bytes(2**20)))


@dataclass
class Upload:
    """What a node uploads as its reply; `withheld` objects never come."""

    proto: object
    tree: ObjectTree
    objects: dict[str, bytes]
    withheld: set[str] = field(default_factory=set)


def raw(kind, children, body):
    """Return the id and the content of an object, well-formed or not."""
    head = f"{kind} {','.join(children)} {len(body)}"
    content = head.encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


def tree_of(object_id, objects):
    """Return the object tree that the heads of the objects describe."""
    head = objects[object_id][: objects[object_id].index(b"\0")].decode()
    children = head.split(" ")[1]
    tree = ObjectTree(object_id=object_id)
    for child in dict.fromkeys(children.split(",") if children else []):
        tree.children.append(tree_of(child, objects))
    return tree


def reply_to(key, node, content):
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=node,
        dst_node_id=1,
        message_type="train",
        group_id="",
        ttl=3600,
        reply_to_message_id=key,
        created_at=0.0,
    )
    return make_message(metadata, content=content)


def upload(key, node, content):
    """Upload a reply as an honest SuperNode does."""
    message = reply_to(key, node, content)
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {k: o.deflate() for k, o in get_all_nested_objects(message).items()}
    proto = message_to_proto(remove_content_from_message(message))
    return Upload(proto, get_object_tree(message), objects)


def upload_objects(key, node, record_id, objects):
    """Upload a reply whose content is an object of the sender's own making."""
    honest = upload(key, node, RecordDict())
    body = honest.objects[honest.tree.object_id].partition(b"\0")[2]
    message_id, content = raw("Message", [record_id], body)
    objects = {**objects, message_id: content}
    honest.proto.metadata.message_id = message_id
    return Upload(honest.proto, tree_of(message_id, objects), objects)


def good(value=1.0, d=3):
    arrays = ArrayRecord({"w": Array(np.full(d, value))})
    metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
    return RecordDict({"arrays": arrays, "metrics": metrics})


def array_body(positions, **changes):
    body = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray"}
    return json.dumps({**body, "arraychunk_ids": positions, **changes}).encode()


class StubLink:
    """A runtime client: what a SuperLink answers when nodes reply at once.

    Parameters
    ----------
    nodes : int
    answer : callable
        Returns the Upload of a node, given its number, from 0, and the message's id.
    """

    def __init__(self, nodes, answer):
        self.ids = list(range(2, 2 + nodes))
        self.answer = answer
        self.uploads, self.ready = {}, {}
        self.objects = {}
        self.pulled = []
        self.confirmed = []
        self.lock = threading.Lock()

    def GetNodes(self, request):
        return GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in self.ids])

    def PushMessages(self, request):
        keys = []
        for proto in request.messages_list:
            key, node = proto.metadata.message_id, proto.metadata.dst_node_id
            keys.append(key)
            reply = self.answer(node - 2, key)
            if reply is not None:
                self.ready[key] = reply
                self.uploads |= dict.fromkeys(reply.objects, reply)
        return PushAppMessagesResponse(message_ids=keys)

    def PushObject(self, request):
        return PushObjectResponse(stored=True)

    def PullMessages(self, request):
        found = [self.ready.pop(k) for k in request.message_ids if k in self.ready]
        return PullAppMessagesResponse(
            messages_list=[reply.proto for reply in found],
            message_object_trees=[reply.tree for reply in found],
        )

    def PullObject(self, request):
        with self.lock:
            self.pulled.append(request.object_id)
        reply = self.uploads.get(request.object_id)
        if reply is None:
            return PullObjectResponse(object_found=False)
        if request.object_id in reply.withheld:
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(
            object_found=True,
            object_available=True,
            object_content=reply.objects[request.object_id],
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


def http_grid(nodes, answer):
    """Return Flower's HttpGrid on such a SuperLink, and the SuperLink."""
    identify_server(1, 1)
    grid = HttpGrid(insecure=True, token="token")
    grid.set_run(Run.create_empty(1))
    grid._client = StubLink(nodes, answer)
    return grid, grid._client
