"""What a reply must look like, and the way from replies to updates and back."""

import io
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_ctma.messages import npy, schema
from flwr_ctma.messages.schema import (
    Rejection,
    Reply,
    ReplySchema,
    quote,
    read_metrics,
)

SENT = {
    "conv.weight": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "bn.running_var": np.ones(3, np.float32),
    "bn.num_batches_tracked": np.array(7),
    "mask": np.array([True, False]),
    "half": np.ones((2, 2), np.float16),
    "double": np.array(0.5),
    "nothing": np.zeros((0, 3), np.float32),
}


def record(arrays):
    return ArrayRecord({key: Array(np.asarray(a)) for key, a in arrays.items()})


def content(arrays, metrics=None):
    if not isinstance(arrays, ArrayRecord):
        arrays = record(arrays)
    metrics = MetricRecord({"num-examples": 3}) if metrics is None else metrics
    return RecordDict({"arrays": arrays, "metrics": metrics})


def saved(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version)
    return file.getvalue()


def header(text, version=b"\x01\x00"):
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + size + text


@pytest.fixture(params=["a layer for each tensor", "joined"])
def size_of_small(request, monkeypatch):
    """Treat the models of a test as large ones, then as small ones."""
    monkeypatch.setattr(schema, "_SMALL", 1000 if request.param == "joined" else 0)


def test_a_good_reply_to_a_large_model_is_viewed_in_place(monkeypatch):
    """Rows share the memory of the reply's bytes: nothing is copied."""
    monkeypatch.setattr(schema, "_SMALL", 0)
    reply = content(SENT)
    rows = ReplySchema(record(SENT)).read(reply).rows
    for (key, array), row in zip(SENT.items(), rows, strict=True):
        np.testing.assert_array_equal(row, array.reshape(-1))
        assert not row.flags.writeable or not row.size, key
        if row.size:
            held = np.frombuffer(reply["arrays"][key].data, np.uint8)
            assert np.shares_memory(row, held)


def test_tensors_of_a_small_model_are_joined_if_they_are_alike():
    sent = {**SENT, "bias": np.arange(3, dtype=np.float32)}
    model = ReplySchema(record(sent), constant_keys=["double"])
    assert len(model.measured) == 2  # in float32 and in float16
    found = model.read(content({k: v + v for k, v in sent.items()})).rows
    both = np.concatenate([sent["conv.weight"].ravel(), sent["bias"]])
    np.testing.assert_array_equal(found[model.measured[0]], 2 * both)
    np.testing.assert_array_equal(model.origin(model.measured)[0], both)
    parts = model.by_key({model.measured[0]: both})
    np.testing.assert_array_equal(parts["bias"], sent["bias"])
    written = model.write({model.measured[0]: both})
    np.testing.assert_array_equal(written["bias"].numpy(), 2 * sent["bias"])
    np.testing.assert_array_equal(written["half"].numpy(), sent["half"])


def test_array_at_fault_is_named_in_a_small_model():
    sent = record({"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)})
    bad = content({"a": np.zeros(3, np.float32), "b": np.array([0.0, np.inf])})
    assert str(ReplySchema(sent).read(bad)) == "not-finite: 'b' is not finite"


@pytest.mark.usefixtures("size_of_small")
def test_writing_no_update_gives_back_what_was_sent():
    """Keys, their order, dtypes and shapes survive, 0-d and empty arrays included."""
    model = ReplySchema(record(SENT))
    every = (*model.measured, *model.buffers)
    reply = model.read(content(SENT))
    update = model.updates([reply, reply, reply], every).combine(np.full(3, 1 / 3))
    written = model.write(dict(zip(every, update, strict=True)))
    assert list(written) == list(SENT)
    for key, array in SENT.items():
        back = written[key].numpy()
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array)


@pytest.mark.usefixtures("size_of_small")
def test_running_statistics_integers_and_booleans_are_not_measured():
    def keys(model, positions):
        origin = zip(positions, model.origin(positions), strict=True)
        return set(model.by_key(dict(origin)))

    model = ReplySchema(record(SENT))
    measured = keys(model, model.measured) - {"nothing"}
    assert measured == {"conv.weight", "half", "double"}
    assert keys(model, model.buffers) == {
        "bn.running_var",
        "bn.num_batches_tracked",
        "mask",
    }
    all_floats = ReplySchema(record(SENT), buffer_keys=())
    assert "bn.running_var" in keys(all_floats, all_floats.measured)


@pytest.mark.parametrize(
    ("dtype", "value", "written"),
    [
        (np.int64, 2.6, 3),
        (np.int64, 1e30, 2**63 - 1024),
        (np.uint8, -3.0, 0),
        (np.int32, 1e12, 2**31 - 1),
        (np.bool_, 0.6, True),
        (np.bool_, 0.4, False),
        (np.float16, 1e9, 65504.0),
    ],
)
def test_written_numbers_fit_their_dtype(dtype, value, written):
    model = ReplySchema(record({"w": np.zeros(1, np.float32), "x": np.zeros(1, dtype)}))
    back = model.write({1: np.array([value])})["x"].numpy()
    assert back.dtype == dtype and back[0] == written


def test_settling_restores_dtypes_and_keeps_buffers():
    """A server optimiser may widen floats; buffers stay as they were aggregated."""
    robust = record(SENT)
    optimised = record({k: np.asarray(v + 1.0, np.float64) for k, v in SENT.items()})
    settled = ReplySchema(record(SENT)).restore_dtypes_and_buffers(robust, optimised)
    assert list(settled) == list(SENT)
    for key, array in SENT.items():
        back, buffer = settled[key].numpy(), key in ("bn.running_var", "mask")
        buffer |= key == "bn.num_batches_tracked"
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array if buffer else array + 1)


@given(
    hnp.arrays(
        st.one_of(
            hnp.floating_dtypes(sizes=(16, 32, 64)),
            hnp.integer_dtypes(),
            hnp.unsigned_integer_dtypes(),
            hnp.boolean_dtypes(),
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.sampled_from("CF"),
    st.sampled_from([(1, 0), (2, 0)]),
)
def test_view_reads_what_numpy_writes(array, order, version):
    """Any real dtype, byte order, layout and version of the format."""
    numbers = npy.view(saved(np.asarray(array, order=order), version))
    assert numbers.shape == array.shape and numbers.dtype == array.dtype
    np.testing.assert_array_equal(numbers.flat, array.reshape(-1))


def test_view_of_a_boolean_is_the_byte_that_holds_it():
    """NumPy's own booleans are undefined for bytes other than 0 and 1."""
    (held,) = npy.view(saved(np.array([True]))[:-1] + b"\2").flat
    assert held.dtype == np.uint8 and held == 2


@settings(max_examples=300)
@given(st.data())
def test_view_of_damaged_bytes_is_right_or_refused(data):
    """Wherever numpy itself reads the bytes as plain numbers, both read the same."""
    good = bytearray(saved(np.arange(6, dtype=np.float32).reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        numbers = npy.view(bytes(good))
    except ValueError as error:
        assert error.args[0] in ("header", "shape", "length")
        return
    there = np.load(io.BytesIO(bytes(good)), allow_pickle=False)
    assert there.shape == numbers.shape
    np.testing.assert_array_equal(numbers.flat, there.reshape(-1))


FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)
LYING = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (FLOATS.reshape(3, 2), "shape"),
        (FLOATS[:, :2], "shape"),
        (FLOATS[:0], "shape"),
        (np.zeros((2, 3), np.complex64), "header"),
        (np.full((2, 3), "word"), "header"),
        (np.zeros((2, 3), np.longdouble), "header"),
        (np.zeros((2, 3), [("a", "f4")]), "header"),
        (np.where(FLOATS == 4, np.nan, FLOATS), "not-finite"),
        (np.where(FLOATS == 4, -np.inf, FLOATS), "not-finite"),
        (FLOATS * np.float32(1e30), "too-large"),
        (np.full((2, 3), 1e300), "not-finite"),
        (b"", "header"),
        (b"garbage", "header"),
        (pickle.dumps(FLOATS), "header"),
        (saved(FLOATS)[:-1], "length"),
        (saved(FLOATS) + b"\0", "length"),
        (header((LYING % "2, 3").encode()), "length"),
        (header((LYING % "1000000, 1000000").encode()), "shape"),
        (header((LYING % ("1," * 100)).encode()), "header"),
        (header((LYING % ("-" * 900 + "1,")).encode()), "header"),
        (header((LYING % "02, 3").encode()) + bytes(24), "header"),
        (header((LYING % "2, 00").encode()), "header"),
        (header(b"(" * 1500 + b"\n"), "header"),
        (header((LYING % "2, 3").encode(), b"\x03\x00"), "header"),
        (b"\x93NUMPY\x01\x00\xff\xff" + (LYING % "2, 3").encode(), "header"),
    ],
)
def test_a_bad_array_is_rejected_with_its_reason(array, reason):
    model = ReplySchema(record({"w": FLOATS}))
    if not isinstance(array, bytes):
        array = saved(array)
    sent = ArrayRecord({"w": Array("float32", (2, 3), "numpy.ndarray", array)})
    found = model.read(content(sent))
    assert isinstance(found, Rejection) and found.reason == reason
    assert "'w'" in found.detail and len(str(found)) < 200


def test_an_object_array_is_never_unpickled():
    """The payload would run code if anything loaded it."""

    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    array = Array("float32", (1,), "numpy.ndarray", file.getvalue())
    model = ReplySchema(record({"w": np.zeros(1, np.float32)}))
    assert model.read(content(ArrayRecord({"w": array}))).reason == "header"


@pytest.mark.parametrize(
    "array",
    [
        FLOATS.astype(">f4"),
        np.asfortranarray(FLOATS),
        FLOATS.astype(np.float64),
        FLOATS.astype(np.float16),
        FLOATS.astype(np.int8),
        np.where(FLOATS == 0, np.float32(-0.0), FLOATS),
        saved(FLOATS, (2, 0)),
    ],
)
def test_another_way_to_write_the_same_numbers_is_accepted(array):
    model = ReplySchema(record({"w": FLOATS}))
    data = array if isinstance(array, bytes) else saved(array)
    sent = ArrayRecord({"w": Array("anything", (9,), "numpy.ndarray", data)})
    (row,) = model.read(content(sent)).rows
    assert row.dtype == np.float32
    np.testing.assert_array_equal(row, FLOATS.reshape(-1))


def test_an_integer_takes_no_floats():
    model = ReplySchema(record({"w": FLOATS, "n": np.array(3)}))
    found = model.read(content({"w": FLOATS, "n": np.array(np.nan)}))
    assert found.reason == "dtype"


def test_a_promise_allocates_nothing():
    """A header that promises 10^12 numbers costs no more than reading the header."""
    model = ReplySchema(record({"w": FLOATS}))
    data = header((LYING % "1000000, 1000000").encode())
    lie = content(ArrayRecord({"w": Array("f", (1,), "numpy.ndarray", data)}))
    tracemalloc.start()
    try:
        model.read(lie)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({}, "records"),
        ({"metrics": MetricRecord()}, "records"),
        ({"arrays": record({"w": FLOATS})}, "records"),
        ({"a": record({"w": FLOATS}), "b": record({"w": FLOATS})}, "records"),
        ({"arrays": ArrayRecord(), "metrics": MetricRecord()}, "keys"),
        ({"arrays": record({"v": FLOATS}), "metrics": MetricRecord()}, "keys"),
        (
            {"arrays": record({"w": FLOATS, "v": FLOATS}), "m": MetricRecord()},
            "keys",
        ),
        (
            {"a": record({"w": FLOATS}), "m": MetricRecord(), "n": MetricRecord()},
            "records",
        ),
    ],
)
def test_a_reply_has_one_record_of_each_kind_and_the_keys_sent(records, reason):
    found = ReplySchema(record({"w": FLOATS})).read(RecordDict(records))
    assert isinstance(found, Rejection) and found.reason == reason


def test_names_of_records_are_free():
    reply = RecordDict({"x": record({"w": FLOATS}), "y": MetricRecord({"loss": 1.0})})
    assert ReplySchema(record({"w": FLOATS})).read(reply).metrics == {"loss": 1.0}
    assert read_metrics(reply).metrics == {"loss": 1.0}
    assert read_metrics(reply).name == "y"
    assert read_metrics(RecordDict()).reason == "records"


def test_an_unknown_serialisation_is_rejected():
    array = Array("float32", (2, 3), "torch.save", saved(FLOATS))
    found = ReplySchema(record({"w": FLOATS})).read(content(ArrayRecord({"w": array})))
    assert found.reason == "stype"


def test_what_clients_write_stays_short_and_on_one_line():
    """A key of a megabyte with line breaks does not reach the log as it is."""
    reply = content({"w\n" * 500_000: FLOATS})
    found = str(ReplySchema(record({"w": FLOATS})).read(reply))
    assert len(found) < 200 and "\n" not in found
    assert quote("x\n") == repr("x\n")


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"w": np.zeros(2, np.complex64)}, "real numbers"),
        ({"w": np.array([np.nan], np.float32)}, "finite"),
        ({"n": np.array(3)}, "floats"),
        ({}, "floats"),
    ],
)
def test_a_model_that_cannot_be_aggregated_is_refused(arrays, part):
    with pytest.raises(ValueError, match=part):
        ReplySchema(record(arrays))


@pytest.mark.parametrize("value", [-np.inf, -3.4e38, np.nan])
def test_constant_of_any_value_stays_as_sent(value):
    mask = np.full(3, value, np.float32)
    sent = ArrayRecord(
        {"w": Array(np.zeros(2, np.float32)), "attention.mask": Array(mask)}
    )
    with pytest.raises(ValueError, match="constant_keys"):
        ReplySchema(sent)
    schema = ReplySchema(sent, constant_keys=["mask"])
    trained = ArrayRecord(
        {"w": Array(np.ones(2, np.float32)), "attention.mask": Array(mask)}
    )
    reply = schema.read(RecordDict({"a": trained, "m": MetricRecord({"loss": 1.0})}))
    assert (schema.measured, schema.buffers) == ((0,), ())
    assert [row.size for row in reply.rows] == [2]
    written = schema.write({0: np.ones(2)})
    assert written["attention.mask"].data == sent["attention.mask"].data
    stepped = ArrayRecord({"w": trained["w"], "attention.mask": Array(np.zeros(3))})
    kept = schema.restore_dtypes_and_buffers(written, stepped)
    assert kept["attention.mask"].data == sent["attention.mask"].data


@pytest.mark.parametrize("name", ["buffer_keys", "constant_keys"])
@pytest.mark.parametrize("keys", ["mask", [1]])
def test_keys_must_be_a_collection_of_strings(name, keys):
    sent = ArrayRecord({"w": Array(np.zeros(2))})
    with pytest.raises(ValueError, match=f"`{name}` should be a collection of s"):
        ReplySchema(sent, **{name: keys})


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 2001, 100_000])
def test_sample_holds_small_tensors_whole_and_a_thousand_numbers_of_large_ones(size):
    row = np.arange(size, dtype=np.float32)
    sample = Reply(MetricRecord(), "metrics", (row, row[:9])).sample
    found, small = np.split(np.frombuffer(sample, np.float32), [-min(size, 9)])
    if size < 1000:
        np.testing.assert_array_equal(found, row)
    else:
        assert 500 <= len(found) <= 1000 and np.all(np.diff(found) == found[1])
    np.testing.assert_array_equal(small, row[:9])


def test_arrays_that_are_huge_together_are_refused_before_they_are_sent():
    """Else each honest reply would be rejected as too large."""
    sent = ArrayRecord({key: Array(np.full(1, 9e17, np.float32)) for key in "ab"})
    with pytest.raises(ValueError, match="of a norm below 1e18"):
        ReplySchema(sent)
