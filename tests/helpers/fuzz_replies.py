"""Replies that find their own way: fuzzing that is guided by coverage.

atheris is no dependency: install it beside flwr-ctma, hypothesis and pytest. The folder
keeps the cases that reached new code.

    python -m tests.helpers.fuzz_replies -runs=100000 -max_len=4096 folder/
"""

import io
import struct
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

atheris = pytest.importorskip("atheris")  # doctests are collected from every file

with atheris.instrument_imports(include=["flwr_ctma"]):
    from flwr_ctma.messages import npy
    from tests.strategy.test_fuzz import SENT, check, record, saved

KEYS = [*SENT, *SENT, *SENT, "other", "", "w\x00"]
DTYPES = ["<f4", ">f4", "<f8", "<f2", "<i8", "|i1", "|b1", "<u4", "<c8", "|S2", "<U1"]
STYPES = ["numpy.ndarray"] * 6 + ["torch", ""]
KINDS = [ArrayRecord, MetricRecord, ConfigRecord]


def case(data: bytes) -> None:
    """Check one case; what is found is raised."""
    source = atheris.FuzzedDataProvider(data)
    arrays, metrics = record(SENT), MetricRecord({"loss": 1.0, "num-examples": 5})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    for _ in range(source.ConsumeIntInRange(1, 3)):
        change = source.ConsumeIntInRange(0, 9)
        key = source.PickValueInList(KEYS)
        if change <= 6:
            payload = draw_payload(source, key)
            stype = source.PickValueInList(STYPES)
            arrays[key] = Array("float32", (2, 3), stype, payload)
        elif change == 7:
            arrays.pop(key, None)
        elif change == 8:
            metrics[source.PickValueInList(["loss", "x"])] = draw_value(source)
        else:
            name = source.PickValueInList(["arrays", "metrics", "more"])
            content.pop(name, None)
            content[name] = source.PickValueInList(KINDS)()
    check(content)


def draw_payload(source: atheris.FuzzedDataProvider, key: str) -> bytes:
    """Bytes of an array: damaged, made of any numbers, or anything at all."""
    kind = source.ConsumeIntInRange(0, 2)
    if kind == 0:
        data = bytearray(saved(SENT.get(key, SENT["w"])))
        for _ in range(source.ConsumeIntInRange(0, 4)):
            place = source.ConsumeIntInRange(0, len(data) - 1)
            data[place] = source.ConsumeIntInRange(0, 255)
        return bytes(data)
    if kind == 1:
        dtype = np.dtype(source.PickValueInList(DTYPES))
        shape = source.PickValueInList([(2, 3), (3, 2), (2,), (), (1,), (0, 3)])
        count = int(np.prod(shape))
        raw = source.ConsumeBytes(count * dtype.itemsize)
        raw = raw.ljust(count * dtype.itemsize, b"\0")
        values = np.frombuffer(raw, dtype).reshape(shape)
        return saved(np.asarray(values, order=source.PickValueInList(["C", "F"])))
    data = source.ConsumeBytes(source.ConsumeIntInRange(0, 300))
    compare(data)
    return data


def draw_value(source: atheris.FuzzedDataProvider) -> float | int | list[float]:
    """Any float, a large integer, or a list."""
    (value,) = struct.unpack("d", source.ConsumeBytes(8).ljust(8, b"\0"))
    kind = source.ConsumeIntInRange(0, 2)
    return [value, int(value) if abs(value) < 1e300 else 2**1100, [value]][kind]


def compare(data: bytes) -> None:
    """Whatever is viewed is what numpy reads, and no more than the bytes."""
    try:
        numbers = npy.view(data)
    except ValueError:
        return
    read = np.load(io.BytesIO(data), allow_pickle=False)
    assert numbers.flat.nbytes <= len(data)
    assert read.shape == numbers.shape and read.dtype == numbers.dtype
    np.testing.assert_array_equal(read.reshape(-1), numbers.flat)


if __name__ == "__main__":
    atheris.Setup(sys.argv, case)
    atheris.Fuzz()
