"""compat: each private name of Flower's does on this version what it is used for."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from flwr_ctma import compat
from flwr_ctma.simulation import InProcessGrid
from tests.helpers.stub_superlink import good, http_grid, upload


def message():
    compat.identify_server(run_id=7, task_id=3)
    return Message(RecordDict(), 2, "train")


def test_every_listed_name_exists():
    assert all(getattr(compat, name) is not None for name in compat.__all__)


def test_server_creates_messages_of_its_run():
    sent = message()
    assert sent.metadata.run_id == 7
    assert sent.metadata.src_node_id == compat.SUPERLINK_NODE_ID


def test_message_id_is_written():
    sent = message()
    compat.set_message_id(sent, "abc")
    assert sent.metadata.message_id == "abc"


def test_messages_and_records_survive_as_bytes():
    compat.identify_server(1, 1)
    sent = Message(good(), 2, "train")
    data = compat.message_to_proto(sent).SerializeToString()
    read = compat.message_from_proto(compat.ProtoMessage.FromString(data))
    assert read.content == sent.content and read.metadata.dst_node_id == 2
    data = compat.recorddict_to_proto(sent.content).SerializeToString()
    proto = compat.ProtoRecordDict.FromString(data)
    assert compat.recorddict_from_proto(proto) == sent.content
    with pytest.raises(compat.DecodeError):
        compat.ProtoMessage.FromString(b"\xff")


def test_error_reply_answers_its_message():
    reply = compat.error_reply("abc", compat.ErrorCode.UNKNOWN, "lost")
    assert reply.has_error() and reply.metadata.reply_to_message_id == "abc"
    assert reply.error == Error(0, "lost")


def test_record_is_that_of_its_constructor():
    arrays = {name: Array(np.full(2, float(i))) for i, name in enumerate("ab")}
    record = compat.make_record(arrays)
    assert record == ArrayRecord({**arrays})
    assert record.object_id == ArrayRecord({**arrays}).object_id
    del arrays["a"]
    assert list(record) == ["a", "b"]


def test_object_head_is_read():
    sent = upload("abc", 2, good())
    kind, children, length = compat.read_object_head(sent.objects[sent.tree.object_id])
    assert (kind, len(children), length > 0) == ("Message", 1, True)


def test_app_is_loaded_by_its_reference(tmp_path):
    (tmp_path / "some_app.py").write_text(
        "from flwr.clientapp import ClientApp\napp = ClientApp()\n"
    )
    found = compat.load_app("some_app:app", compat.LoadClientAppError, tmp_path)
    assert type(found).__name__ == "ClientApp"
    with pytest.raises(compat.LoadServerAppError):
        compat.load_app("some_app:missing", compat.LoadServerAppError, tmp_path)


def test_run_config_is_read_as_flower_reads_it():
    assert compat.parse_config_args(["a=1 b='x'"]) == {"a": 1, "b": "x"}
    assert compat.flatten_dict({"a": {"b": 1}}) == {"a.b": 1}


def test_grids_are_told_apart():
    grid, _ = http_grid(1, lambda node, key: None)
    assert compat.is_network_grid(grid) and not compat.is_simulation_grid(grid)
    ours = InProcessGrid(lambda message, context: None, 1)
    assert not compat.is_network_grid(ours) and not compat.is_simulation_grid(ours)
    simulation = InMemoryGrid.__new__(InMemoryGrid)
    assert compat.is_simulation_grid(simulation)
    assert compat.Run.create_empty(1).run_id == 1


def test_announced_reply_is_pulled_as_flower_pulls_it():
    class Observer:
        objects = 0
        checked = None

        def before_pull(self):
            pass

        def wait(self):
            return False

        def add(self, object_id, content):
            self.objects += 1

        def check(self, message_id):
            self.checked = message_id

    grid, link = http_grid(2, lambda node, key: upload(key, node, good(node)))
    sent = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    keys = list(grid.push_messages(sent))
    found = compat.announced_replies(grid, keys)
    assert [reply.reply_to for reply in found] == keys and link.pulled == []
    observer = Observer()
    (reply,) = found[1].pull(observer)
    assert reply.content == good(1) and observer.objects == len(found[1].object_ids)
    assert link.confirmed == [observer.checked] == [reply.metadata.message_id]
