"""What a checkpoint gives back is what was saved: types, bits, and what comes next."""

import random
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result

from flwr_ctma.tracking import checkpoint
from flwr_ctma.tracking.checkpoint import is_plain, latest, pack, write

VALUES = [
    *(None, True, -(2**70), 0.1, float("-inf"), "é", complex(0.5, -0.0)),
    *(b"", b"\0\xff", bytearray(b"\1\2")),
    *([1, [2.0]], (1, (None,)), {1, 2}, frozenset({"a"})),
    *({3: "x", (1, 2): {}}, OrderedDict(b=1, a=2), Counter("aab")),
    *(deque([1, 2]), deque([1, (2,)], maxlen=3), deque(maxlen=0)),
    *(defaultdict(kind) for kind in (int, float, str, bool, list, dict, set)),
    *(defaultdict(int, a=1), defaultdict(list, {2: [3]})),
    Array(np.arange(3.0)),
    ArrayRecord({"w": Array(np.ones(2))}),
    MetricRecord({"loss": 0.5, "all": [1, 2]}),
    ConfigRecord({"key": b"k", "names": ["a"]}),
    RecordDict({"config": ConfigRecord({"on": True})}),
]
DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", ">f4", ">i8", "complex64", "complex128"),
    *("longdouble", "datetime64[s]", "timedelta64[ns]", "S3", "U2"),
]
NATIVE = DTYPES[:12]


def returned(value, folder):
    write(folder, 1, value)
    return latest(folder).state


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_comes_back_with_its_type(value, tmp_path):
    back = returned({"held": value}, tmp_path)["held"]
    assert type(back) is type(value) and back == value
    assert repr(back) == repr(value)  # order, signs of zeros, factories, lengths


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_array_comes_back_to_the_bit(dtype, shape, tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (*shape, np.dtype(dtype).itemsize))
    value = bits.astype(np.uint8).view(dtype).reshape(shape)
    value = np.asarray(value, order="F")
    back = returned(value, tmp_path)
    assert back.dtype == value.dtype and back.shape == shape
    assert back.tobytes() == value.tobytes()
    back[...] = value  # it can be written to


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalar_comes_back_with_its_type(dtype, tmp_path):
    scalar = np.array([1]).astype(dtype)[0]
    back = returned(scalar, tmp_path)
    assert type(back) is type(scalar)
    assert back.dtype == scalar.dtype and back == scalar


@pytest.mark.parametrize("dtype", NATIVE)
def test_safetensors_holds_numbers_as_numbers(dtype):
    """Other programs can read them; other dtypes are bytes."""
    arrays = {}
    pack([np.ones(2, dtype)], arrays)
    assert arrays["0"].dtype == dtype and arrays["0"].shape == (2,)


def draws(generator):
    if isinstance(generator, random.Random):
        return [generator.gauss(0, 1) for _ in range(3)]
    return generator.normal(size=3).tolist()


@pytest.mark.parametrize(
    "generator",
    [
        random.Random(1),
        np.random.RandomState(1),
        *(
            np.random.Generator(bits(1))
            for bits in (
                np.random.PCG64,
                np.random.PCG64DXSM,
                np.random.MT19937,
                np.random.Philox,
                np.random.SFC64,
            )
        ),
    ],
    ids=lambda one: type(getattr(one, "bit_generator", one)).__name__,
)
def test_generator_goes_on_where_it_was(generator, tmp_path):
    if not isinstance(generator, np.random.Generator):
        draws(generator)  # an odd number of normals: one more is kept for later
    back = returned(generator, tmp_path)
    assert type(back) is type(generator)
    assert draws(back) == draws(generator)


def test_history_of_a_run_comes_back(tmp_path):
    result = Result(arrays=ArrayRecord([np.ones(2)]))
    result.train_metrics_clientapp[3] = MetricRecord({"loss": 0.5})
    back = returned(result, tmp_path)
    assert type(back) is Result and vars(back) == vars(result)


class Mine(dict):
    """A subclass of a container."""


@pytest.mark.parametrize(
    "value",
    [Mine(), print, np.array([None]), defaultdict(Mine), {"a": [(object(),)]}],
)
def test_what_is_no_plain_data_is_refused(value, tmp_path):
    assert not is_plain(value)
    with pytest.raises(ValueError, match="`state` should be made of numbers"):
        write(tmp_path, 1, value)
    assert latest(tmp_path) is None and not [*tmp_path.iterdir()]


def test_two_checkpoints_are_kept(tmp_path):
    for number in range(1, 5):
        write(tmp_path, number, number)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round-00000003", "round-00000004"]
    assert latest(tmp_path) == checkpoint.Checkpoint(4, 4)
