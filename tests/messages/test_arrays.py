"""Arrays travel as Flower writes them, byte by byte, and are read where they are."""

import hypothesis.extra.numpy as np_st
import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given

from flwr_ctma.messages.arrays import numbers, to_array

ANY = np_st.arrays(
    np_st.scalar_dtypes().filter(lambda dtype: dtype.kind in "biuf"),
    np_st.array_shapes(min_dims=0, max_dims=3, min_side=0),
)


@given(ANY)
def test_array_is_what_flower_makes(values):
    assert to_array(values) == Array(values)


@given(ANY)
def test_numbers_come_back(values):
    np.testing.assert_array_equal(numbers(to_array(values)), values)


@pytest.mark.parametrize("change", [np.asfortranarray, lambda x: x[:, ::2]])
def test_other_layouts_hold_the_same_numbers(change):
    values = change(np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(to_array(values).numpy(), values)


def test_dates_travel():
    values = np.array(["2024-02-29"], dtype="datetime64[s]")
    assert to_array(values) == Array(values)


def test_objects_do_not_travel():
    with pytest.raises(ValueError, match="Python objects"):
        to_array(np.array([None]))


def test_what_is_not_plain_is_read_as_flower_reads_it():
    values = np.array([1 + 2j])
    assert numbers(Array(values)) == values
