"""BoundedGrid on Flower's own HttpGrid: a hostile upload costs its own reply alone."""

import json
import threading
import tracemalloc

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.proto.message_pb2 import ObjectTree

from flwr_ctma.attacks.grid import AttackedGrid
from flwr_ctma.messages.bounded_grid import (
    REFUSED_REPLY,
    BoundedGrid,
    abandon_replies,
    bound_replies,
)
from flwr_ctma.messages.reply_size import ReplyLimit
from flwr_ctma.strategy import (
    AnyTimeSGD,
    AsyncRobustStrategy,
    GracePeriod,
    GracePeriodGrid,
    OnDiskGrid,
)
from tests.helpers.stub_superlink import (
    CHUNK,
    array_body,
    good,
    http_grid,
    raw,
    upload,
    upload_objects,
)

GRACE = GracePeriod(factor=0.0, at_least=0.2, at_most=0.2)
GRIDS = {
    "bounded": BoundedGrid,
    "grace": lambda grid: GracePeriodGrid(grid, 1, GRACE),
    "disk": lambda grid: OnDiskGrid(grid, 1, None, GRACE),
    "attacked": lambda grid: bound_replies(AttackedGrid(grid, "ipm", 1)),
}


def ask(grid):
    content = {"arrays": ArrayRecord({"w": Array(np.zeros(3))})}
    return [Message(RecordDict(content), node, "train") for node in grid.get_node_ids()]


def by_node(grid, messages, replies):
    nodes = {m.metadata.message_id: m.metadata.dst_node_id - 2 for m in messages}
    return {nodes[reply.metadata.reply_to_message_id]: reply for reply in replies}


def array(positions, chunk=CHUNK):
    name, content = raw("Array", [chunk.object_id], array_body(positions))
    return name, {name: content, chunk.object_id: chunk.deflate()}


def record(kind, names, parts):
    name, content = raw(
        kind, list(dict.fromkeys(names.values())), json.dumps(names).encode()
    )
    return name, {**parts, name: content}


def content_of(array_id, parts, arrays=1, records=1):
    keys = {f"w{i}": array_id for i in range(arrays)}
    arrays_id, parts = record("ArrayRecord", keys, parts)
    keys = {
        f"arrays{i}" if records > 1 else "arrays": arrays_id for i in range(records)
    }
    return record("RecordDict", keys, parts)


def repeated_chunk(key, node):
    return upload_objects(key, node, *content_of(*array([0] * 4_000)))


def repeated_array(key, node):
    return upload_objects(key, node, *content_of(*array([0]), arrays=300))


def repeated_record(key, node):
    return upload_objects(key, node, *content_of(*array([0]), records=300))


def many_keys(key, node):
    empty, parts = raw("Array", [], array_body([]))
    return upload_objects(key, node, *content_of(empty, {empty: parts}, arrays=10_000))


def a_million_metrics(key, node):
    metrics = MetricRecord({"m": [0] * 500_000})
    return upload(key, node, RecordDict({"metrics": metrics}))


def a_large_array(key, node):
    arrays = ArrayRecord({"w": Array(np.random.default_rng(0).random(10**6))})
    return upload(key, node, RecordDict({"arrays": arrays}))


def positions_by_the_million(key, node):
    return upload_objects(key, node, *content_of(*array([0] * 500_000)))


def nested_json(key, node):
    body = b'{"arrays": ' + b"[" * 20_000
    name, content = raw("RecordDict", [], body)
    return upload_objects(key, node, name, {name: content})


def a_chunk_for_content(key, node):
    return upload_objects(
        key, node, CHUNK.object_id, {CHUNK.object_id: CHUNK.deflate()}
    )


def a_record_in_a_record(key, node):
    name, parts = content_of(*array([0]))
    return upload_objects(key, node, *record("RecordDict", {"a": name}, parts))


HOSTILE = [
    *(repeated_chunk, repeated_array, repeated_record, many_keys, a_million_metrics),
    *(a_large_array, positions_by_the_million, nested_json, a_chunk_for_content),
    a_record_in_a_record,
]


@pytest.mark.parametrize(
    ("attack", "kind"),
    [(attack, "grace") for attack in HOSTILE]
    + [(repeated_chunk, kind) for kind in ("bounded", "disk", "attacked")],
)
def test_hostile_upload_costs_its_reply_and_little_memory(attack, kind):
    uploads = {}

    def answer(node, key):
        if node == 0:
            uploads[key] = attack(key, node)
            return uploads[key]
        return upload(key, node, good(1 + 0.01 * node))

    inner, _ = http_grid(5, answer)
    grid = GRIDS[kind](inner)
    layer = grid if isinstance(grid, BoundedGrid) else grid.grid
    layer.reply_limit = ReplyLimit(allowance=2**22)
    messages = ask(grid)
    keys = list(grid.push_messages(messages))
    tracemalloc.start()
    try:
        replies = []
        while len(replies) < 5:
            replies += grid.pull_messages(keys)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    found = by_node(grid, messages, replies)
    assert found.keys() == set(range(5))
    assert found[0].error.code == REFUSED_REPLY
    assert all(found[node].has_content() for node in range(1, 5))
    (sent,) = uploads.values()
    assert peak < 2**23 + 3 * sum(map(len, sent.objects.values()))


def test_replies_are_those_of_flower():
    def answer(node, key):
        zeros = Array(np.zeros(2 * 10**6))  # identical chunks, which travel once
        content = good(node)
        content["more"] = ArrayRecord({"zeros": zeros, "again": zeros})
        content["config"] = ConfigRecord({"text": "x", "bytes": b"y" * 1000})
        return upload(key, node, content)

    flower, link = http_grid(3, answer)
    messages = ask(flower)
    theirs = by_node(flower, messages, flower.send_and_receive(messages, timeout=9))
    inner, link = http_grid(3, answer)
    grid = BoundedGrid(inner)
    messages = ask(grid)
    ours = by_node(grid, messages, grid.send_and_receive(messages, timeout=9))
    assert ours.keys() == theirs.keys() == {0, 1, 2}
    for node, reply in ours.items():
        assert reply.content == theirs[node].content
        assert reply.metadata.src_node_id == theirs[node].metadata.src_node_id
    assert len(link.confirmed) == 3


def test_object_that_a_tree_names_many_times_is_pulled_once():
    def answer(node, key):
        reply = upload(key, node, good())
        child = ObjectTree(object_id=reply.tree.children[0].object_id)
        reply.tree.children.extend([child] * 1000)
        return reply

    inner, link = http_grid(1, answer)
    grid = BoundedGrid(inner)
    (reply,) = grid.send_and_receive(ask(grid), timeout=9)
    assert reply.has_content() and len(link.pulled) == len(set(link.pulled))


def withhold(node, key):
    reply = upload(key, node, good(1 + 0.01 * node))
    if node == 0:
        reply.withheld = {reply.tree.object_id}
    return reply


def pulling_threads():
    return [t for t in threading.enumerate() if "_Upload" in repr(t._target)]


@pytest.mark.parametrize("kind", ["grace", "disk"])
def test_round_does_not_wait_for_a_withheld_upload(kind):
    """Flower's own grid would wait for it for up to two hours."""
    inner, _ = http_grid(5, withhold)
    grid = GRIDS[kind](inner)
    for _ in range(3):
        messages = ask(grid)
        replies = grid.send_and_receive(messages, timeout=60)
        assert by_node(grid, messages, replies).keys() == {1, 2, 3, 4}
    for thread in pulling_threads():
        thread.join(20)
    assert pulling_threads() == []


def test_withheld_uploads_do_not_pile_up():
    """A node that has one pull running gets no second one."""
    inner, _ = http_grid(2, lambda node, key: withhold(0, key))
    grid = BoundedGrid(inner)
    for _ in range(5):
        keys = grid.push_messages(ask(grid))
        assert grid.pull_messages(keys) == []
        assert len(pulling_threads()) <= 2
    grid.abandon(list(grid._uploads))
    assert not grid._sent
    for thread in pulling_threads():
        thread.join(20)


def test_messages_that_are_not_answered_in_time_are_forgotten():
    inner, _ = http_grid(3, withhold)
    grid = BoundedGrid(inner)
    assert len(grid.send_and_receive(ask(grid), timeout=0.2)) == 2
    assert not grid._sent and not grid._uploads
    for thread in pulling_threads():
        thread.join(20)
    assert pulling_threads() == []


def test_replies_are_abandoned_on_a_grid_inside_others():
    inner, _ = http_grid(1, withhold)
    grid = BoundedGrid(inner)
    keys = list(grid.push_messages(ask(grid)))
    assert grid.pull_messages(keys) == [] and grid._uploads
    abandon_replies(AttackedGrid(AttackedGrid(grid, "ipm", 1), "ipm", 1), keys)
    assert not grid._uploads


@pytest.mark.parametrize(("sizes", "refused"), [([], True), ([0], True), ([3], False)])
def test_reply_to_a_message_of_another_grid_is_held_to_the_largest_sent(sizes, refused):
    """As after a restart of the server. A model of 3 numbers is the largest here."""
    inner, _ = http_grid(1, lambda node, key: upload(key, node, good()))
    grid = BoundedGrid(inner, ReplyLimit(factor=1e6, allowance=0))
    for size in sizes:
        arrays = {"w": Array(np.zeros(size))} if size else {}
        content = RecordDict({"arrays": ArrayRecord(arrays)})
        grid.push_messages([Message(content, 2, "train")])
    keys = list(inner.push_messages(ask(inner)))
    replies = []
    while not replies:
        replies = grid.pull_messages(keys)
    assert replies[0].has_error() == refused


def test_slow_upload_within_the_grace_period_counts():
    inner, link = http_grid(3, withhold)
    grid = GracePeriodGrid(inner, 1, GracePeriod(0.0, 30.0, 30.0))
    timer = threading.Timer(
        0.5, lambda: [u.withheld.clear() for u in link.uploads.values()]
    )
    timer.start()
    assert len(grid.send_and_receive(ask(grid), timeout=60)) == 3


def test_asynchronous_run_goes_on_beside_a_withheld_upload():
    inner, _ = http_grid(7, withhold)
    step = AnyTimeSGD(1 / 7, "fixed(gamma=1)")
    strategy = AsyncRobustStrategy(step, num_malicious_nodes=1)
    initial = ArrayRecord({"w": Array(np.zeros(3))})
    result = strategy.start(inner, initial, num_rounds=10, timeout=60)
    assert result.train_metrics_clientapp[10]["steps"] > 0
    assert np.abs(result.arrays["w"].numpy() - 1).max() < 0.3
    for thread in pulling_threads():
        thread.join(20)
    assert pulling_threads() == []


def test_lost_connection_ends_the_run():
    inner, link = http_grid(2, withhold)

    def broken(request):
        raise ConnectionError("no SuperLink")

    link.PullObject = broken
    with pytest.raises(ConnectionError):
        BoundedGrid(inner).send_and_receive(ask(inner), timeout=9)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("factor", lambda grid: ReplyLimit(factor=-1)),
        ("allowance", lambda grid: ReplyLimit(allowance=float("inf"))),
        ("reply_limit", lambda grid: BoundedGrid(grid, reply_limit=3)),
        ("max_pulls", lambda grid: BoundedGrid(grid, max_pulls=0)),
        ("grace_period", lambda grid: GracePeriodGrid(grid, 1, 5.0)),
    ],
)
def test_wrong_parameter_is_refused(name, make):
    with pytest.raises(ValueError, match=f"Parameter `{name}`"):
        make(http_grid(1, withhold)[0])
