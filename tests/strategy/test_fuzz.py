"""Replies that nobody thought of: no exception, and no number that is not one."""

import io
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_ctma.aggregators import CTMA, Budget, GeometricMedian
from flwr_ctma.messages.schema import Rejection, Reply, ReplySchema
from flwr_ctma.strategy.round.aggregate import aggregate_replies
from flwr_ctma.strategy.round.metrics import trimmed_mean

SENT = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "half": np.zeros(2, np.float16),
    "count": np.array(3),
    "mask": np.array([True]),
}


def saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def record(arrays):
    return ArrayRecord({key: Array(np.asarray(a)) for key, a in arrays.items()})


MODEL = ReplySchema(record(SENT))
HONEST = [
    MODEL.read(
        RecordDict(
            {
                "arrays": record({**SENT, "w": SENT["w"] + np.float32(0.01 * i)}),
                "metrics": MetricRecord({"loss": 1.0, "num-examples": 5}),
            }
        )
    )
    for i in range(4)
]

KEYS = st.sampled_from([*SENT, "other", "", "w\x00"]) | st.text(max_size=3)
SHAPES = st.sampled_from([a.shape for a in SENT.values()]) | hnp.array_shapes(
    min_dims=0, min_side=0, max_side=3
)
DTYPES = hnp.scalar_dtypes() | hnp.unicode_string_dtypes(max_len=3)
GOOD = st.sampled_from([saved(a) for a in SENT.values()])


@st.composite
def payloads(draw):
    """Bytes of an array: right, of another kind, damaged, cut, or anything."""
    kind = draw(st.sampled_from(["good", "array", "damaged", "header", "any"]))
    if kind == "any":
        return draw(st.binary(max_size=300))
    if kind == "array":
        shape = draw(SHAPES)
        return saved(draw(hnp.arrays(draw(DTYPES), shape)))
    if kind == "header":
        text = draw(
            st.from_regex(
                r"\{'descr': '[<>|=]?[biufcOSUVmM][0-9]{1,2}', 'fortran_order': "
                r"(True|False), 'shape': \([0-9, ]{0,30}\), \} *\n",
                fullmatch=True,
            )
        ).encode()
        version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00"]))
        size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
        return b"\x93NUMPY" + version + size + text + draw(st.binary(max_size=64))
    data = bytearray(draw(GOOD))
    if kind == "damaged":
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data) - 1))
            data[at] = draw(st.integers(0, 255))
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


ARRAYS = st.builds(
    Array,
    st.sampled_from(["float32", "int64", "object", ""]),
    st.lists(st.integers(), max_size=3).map(tuple),
    st.sampled_from(["numpy.ndarray"] * 5 + ["torch", ""]),
    payloads(),
)
VALUES = st.floats() | st.integers()
METRICS = st.dictionaries(
    st.sampled_from(["loss", "num-examples"]) | st.text(max_size=3),
    VALUES | st.lists(st.floats(), max_size=3) | st.lists(st.integers(), max_size=3),
    max_size=3,
).map(MetricRecord)


@st.composite
def contents(draw):
    """A reply that is right but for what was drawn."""
    arrays = record(SENT)
    for _ in range(draw(st.integers(0, 3))):
        key = draw(KEYS)
        if draw(st.booleans()):
            arrays[key] = draw(ARRAYS)
        else:
            arrays.pop(key, None)
    content = RecordDict({"arrays": arrays, "metrics": draw(METRICS)})
    for _ in range(draw(st.sampled_from([0] * 6 + [1, 2]))):
        name = draw(st.sampled_from(["arrays", "metrics", "more"]))
        change = draw(st.sampled_from([ArrayRecord, MetricRecord, ConfigRecord, None]))
        content.pop(name, None)
        if change is not None:
            content[name] = change()
    return content


def check(content):
    found = MODEL.read(content)
    if isinstance(found, Rejection):
        assert found.reason and len(str(found)) < 300 and str(found).isprintable()
        return
    assert isinstance(found, Reply)
    for row, array in zip(found.rows, SENT.values(), strict=True):
        assert row.shape == (np.size(array),) and np.isfinite(row).all()
    replies = [*HONEST, found]
    rule = CTMA(GeometricMedian())
    step = aggregate_replies(rule, MODEL, replies, Budget(5, 1))
    for key, array in SENT.items():
        result = step.arrays[key].numpy()
        assert np.isfinite(result).all()
        assert result.dtype == np.asarray(array).dtype and result.shape == array.shape
    assert np.abs(step.arrays["w"].numpy() - SENT["w"]).max() < 1
    metrics, _ = trimmed_mean([reply.metrics for reply in replies], f=1)
    assert metrics == {"loss": 1.0, "num-examples": 5.0}


RELAXED = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
]


@settings(max_examples=200, deadline=None, suppress_health_check=RELAXED)
@given(contents())
def test_any_reply(content):
    check(content)


@pytest.mark.long
@settings(max_examples=100_000, deadline=None, suppress_health_check=RELAXED)
@given(contents())
def test_any_of_many_replies(content):
    check(content)


@pytest.mark.long
def test_memory_is_bounded_by_what_was_sent():
    """Of 100 000 damaged payloads none costs much more than a copy of it, 4 kB."""
    rng = np.random.default_rng(0)
    good = np.frombuffer(saved(np.ones((500, 2), np.float32)), np.uint8)
    model = ReplySchema(record({"w": np.ones((500, 2), np.float32)}))
    worst = 0
    for _ in range(100_000):
        data = good.copy()
        at = rng.integers(0, 140, rng.integers(1, 4))
        data[at] = rng.integers(0, 256, at.size)
        array = Array("float32", (500, 2), "numpy.ndarray", data.tobytes())
        content = RecordDict(
            {"arrays": ArrayRecord({"w": array}), "metrics": MetricRecord()}
        )
        tracemalloc.start()
        model.read(content)
        worst = max(worst, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert worst < 40_000
