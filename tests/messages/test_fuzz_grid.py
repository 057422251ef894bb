"""Random object trees through Flower's own grid: one reply each, little memory."""

import json
import tracemalloc

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flwr_ctma.messages.bounded_grid import BoundedGrid
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.strategy import GracePeriod, GracePeriodGrid, OnDiskGrid
from tests.helpers.stub_superlink import good, http_grid, raw, upload, upload_objects

LIMIT = ReplyLimit(allowance=2**18)
GRACE = GracePeriod(0.0, 5.0, 5.0)
GRIDS = {
    "bounded": lambda grid: BoundedGrid(grid, LIMIT),
    "grace": lambda grid: GracePeriodGrid(grid, 0, GRACE, reply_limit=LIMIT),
    "disk": lambda grid: OnDiskGrid(grid, 0, None, GRACE, reply_limit=LIMIT),
}
KINDS = ["Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "MetricRecord"]
LEAVES = st.one_of(
    st.none(),
    st.integers(-2, 5),
    st.text(max_size=5),
    st.lists(st.integers(-2, 5), max_size=5),
    st.sampled_from([10**5, [0] * 10**5, 1e308, "float32", "numpy.ndarray"]),
)


@st.composite
def trees(draw):
    """Draw objects that name earlier ones, well-formed or not, often many times."""
    objects, ids = {}, []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(KINDS[1:] if not ids else KINDS))
        children = draw(st.lists(st.sampled_from(ids), max_size=4)) if ids else []
        times = draw(st.sampled_from([1, 1, 1, 2, 2000]))
        match kind:
            case "ArrayChunk":
                body, children = bytes(draw(st.sampled_from([0, 10, 10**4]))), []
            case "Array":
                at = [i % len(children) for i in range(times)] if children else []
                fields = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray"}
                body = json.dumps({**fields, "arraychunk_ids": at}).encode()
            case "MetricRecord":
                record = MetricRecord({"m": [0] * draw(st.sampled_from([1, 10**5]))})
                body, children = record.deflate().partition(b"\0")[2], []
            case "Message":
                body = b""
            case _:
                keys = children * times
                body = json.dumps({f"k{i}": key for i, key in enumerate(keys)}).encode()
        if draw(st.integers(0, 4)) == 0:
            body = json.dumps({"arraychunk_ids": draw(LEAVES)}).encode()
        if draw(st.integers(0, 9)) == 0:
            body = draw(st.binary(max_size=20))
        name, content = raw(kind, list(dict.fromkeys(children)), body)
        objects[name] = content
        ids.append(name)
    return ids[-1], objects


def check(tree, kind):
    root, objects = tree

    def answer(node, key):
        if node == 0:
            return upload_objects(key, node, root, objects)
        return upload(key, node, good())

    inner, _ = http_grid(3, answer)
    grid = GRIDS[kind](inner)
    sent = {"arrays": ArrayRecord()}
    messages = [Message(RecordDict(sent), n, "train") for n in grid.get_node_ids()]
    tracemalloc.start()
    try:
        replies = grid.send_and_receive(messages, timeout=20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    answered = {reply.metadata.reply_to_message_id: reply for reply in replies}
    assert answered.keys() == {message.metadata.message_id for message in messages}
    assert all(answered[m.metadata.message_id].has_content() for m in messages[1:])
    size = sum(map(len, objects.values()))
    assert peak < 2 * 10**6 + 2 * LIMIT.allowance + 4 * size


@given(trees())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_random_object_tree_costs_one_reply(tree):
    check(tree, "grace")


@pytest.mark.long
@pytest.mark.parametrize("kind", GRIDS)
@given(tree=trees())
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_random_object_trees_cost_one_reply_each(kind, tree):
    check(tree, kind)
