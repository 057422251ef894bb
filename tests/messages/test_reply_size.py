"""The size of a reply before it is inflated, against a count by hand."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from flwr_ctma.messages import reply_size
from flwr_ctma.messages.reply_size import ReplyLimit, ReplySize, ReplyTooLarge
from tests.helpers.stub_superlink import array_body, raw, upload

LONG = raw("ArrayChunk", [], bytes(1000))
SHORT = raw("ArrayChunk", [], b"x")
ARRAY = raw("Array", [LONG[0], SHORT[0]], array_body([0, 1, 0]))
PARTS = {
    "Message": {"RecordDict"},
    "RecordDict": {"ArrayRecord", "MetricRecord", "ConfigRecord"},
    "ArrayRecord": {"Array"},
    "Array": {"ArrayChunk"},
    "MetricRecord": set(),
    "ConfigRecord": set(),
}
KINDS = [*PARTS, "ArrayChunk"]


def named(kind, *names):
    """Return a record that names objects, each as often as it is given."""
    body = json.dumps({f"k{i}": name for i, name in enumerate(names)}).encode()
    return raw(kind, list(dict.fromkeys(names)), body)


def size_of(*objects, limit=float("inf")):
    size = ReplySize(limit)
    for name, content in objects:
        size.add(name, content)
    return size


def test_objects_count_as_often_as_they_are_named():
    """Two arrays in each of three records; each array holds one chunk twice.

    A byte of a chunk counts once, a byte of another object 32 times.
    """
    record = named("ArrayRecord", ARRAY[0], ARRAY[0])
    metrics, config = raw("MetricRecord", [], b"m"), raw("ConfigRecord", [], b"")
    content = named("RecordDict", *3 * [record[0]], metrics[0], config[0])
    message = raw("Message", [content[0]], b"")
    texts = 3 * [record] + 6 * [ARRAY] + [metrics, config, content, message]
    chunks = 12 * [LONG] + 6 * [SHORT]
    expected = 32 * sum(len(text) for _, text in texts)
    expected += sum(len(chunk) for _, chunk in chunks)
    objects = [LONG, SHORT, ARRAY, record, metrics, config, content, message]
    size_of(*objects, limit=expected).check(message[0])
    with pytest.raises(ReplyTooLarge, match=rf"takes {expected} bytes or more, and"):
        size_of(*objects, limit=expected - 1).check(message[0])


def test_pulled_objects_count_once_and_at_once():
    expected = len(LONG[1]) + 32 * len(ARRAY[1])
    size_of(LONG, ARRAY, ARRAY, LONG, limit=expected)
    size = size_of(LONG, limit=expected - 1)
    with pytest.raises(ReplyTooLarge, match=rf"and {expected - 1} are allowed"):
        size.add(*ARRAY)


def test_reply_of_an_honest_node_is_within_the_limit():
    model = ArrayRecord({"w": Array(np.zeros(10**6)), "b": Array(np.zeros(3))})
    metrics = MetricRecord({"num-examples": 3, "losses": [0.5, 0.25]})
    config = ConfigRecord({"name": "a", "key": b"k"})
    content = RecordDict({"arrays": model, "metrics": metrics, "config": config})
    reply = upload("key", 1, content)
    limit = ReplyLimit(factor=1.0, allowance=2**16).of(8 * 10**6)
    size = size_of(*reply.objects.items(), limit=limit)
    size.check(reply.proto.metadata.message_id)


@pytest.mark.parametrize("child", KINDS)
@pytest.mark.parametrize("parent", PARTS)
def test_part_is_refused_where_flower_refuses_it(parent, child):
    """Also a part that no key names."""
    bodies = {"Array": b'{"arraychunk_ids": []}'}
    part = raw(child, [], bodies.get(child, b"{}"))
    objects, kind = [part, raw(parent, [part[0]], bodies.get(parent, b"{}"))], parent
    while kind != "Message":
        kind = next(above for above, parts in PARTS.items() if kind in parts)
        name = objects[-1][0]
        objects.append(raw(kind, [name], json.dumps({"k": name}).encode()))
    size = size_of(*objects)
    if child in PARTS[parent]:
        size.check(objects[-1][0])
        return
    with pytest.raises(ValueError, match=f"cannot be a part of {parent}"):
        size.check(objects[-1][0])


def test_each_object_is_read_once(monkeypatch):
    """The time is bounded, however often objects name each other."""
    read = []

    def loads(body, loads=json.loads):
        read.append(body)
        return loads(body)

    monkeypatch.setattr(reply_size.json, "loads", loads)
    arrays = [raw("Array", [LONG[0]], array_body([0] * i)) for i in range(5)]
    names = [name for name, _ in arrays]
    records = [named("ArrayRecord", *names, *names[:i]) for i in range(5)]
    content = named("RecordDict", *[name for name, _ in records])
    message = raw("Message", [content[0]], b"")
    size_of(LONG, *arrays, *records, content, message).check(message[0])
    assert len(read) == 11


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="an unknown kind"):
        size_of(raw("Pickle", [], b""))


def test_object_that_is_no_message_is_refused():
    record = named("RecordDict")
    with pytest.raises(ValueError, match="no message"):
        size_of(record).check(record[0])


def test_object_that_never_came_is_an_error():
    message = raw("Message", [LONG[0]], b"")
    with pytest.raises(LookupError):
        size_of(message).check(message[0])
    with pytest.raises(LookupError):
        size_of().check(message[0])


@pytest.mark.parametrize("field", ["factor", "allowance"])
@pytest.mark.parametrize("value", [True, "4", None, 1j, -1, float("inf"), float("nan")])
def test_limit_that_is_no_finite_number_is_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` should be a finite number"):
        ReplyLimit(**{field: value})


def test_limit_may_be_zero():
    assert ReplyLimit(factor=0, allowance=0).of(10**9) == 0
