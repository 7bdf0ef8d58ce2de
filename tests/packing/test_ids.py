"""Ids: each has one number, in the order of its text, and comes back as it was, whatever it is made of."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.packing.ids import number_ids

HEXADECIMAL = st.text("0123456789abcdef", min_size=32, max_size=32)
TEXT = st.text(st.characters(min_codepoint=2, exclude_categories=["Cs"]), max_size=40)
ZEROS = "0" * 32


def numbered(*arrays):
    return number_ids(lambda: [pa.array(names, pa.string()) for names in arrays])


@given(st.lists(st.lists(HEXADECIMAL | st.just(ZEROS))) | st.lists(st.lists(HEXADECIMAL | TEXT)))
def test_names_come_back_and_are_numbered_in_the_order_of_their_text(arrays):
    ids, numbers = numbered(*arrays)
    names = [name for array in arrays for name in array]
    assert ids.names(numbers).to_pylist() == names
    assert ids.names(np.arange(len(ids))).to_pylist() == sorted(set(names))


@given(st.lists(HEXADECIMAL, max_size=20), st.lists(HEXADECIMAL | TEXT, max_size=20), st.booleans())
def test_what_is_here_is_found_and_nothing_else(here, others, hexadecimal):
    ids, _ = numbered(here if hexadecimal else [*here, "c1"])
    asked = pa.array([*here, *others], pa.string())
    expected = {name: number for number, name in enumerate(ids.names(np.arange(len(ids))).to_pylist())}
    assert ids.find(asked).tolist() == [expected.get(name, -1) for name in asked.to_pylist()]
    assert ids.find(asked.slice(1)).tolist() == ids.find(asked).tolist()[1:]


@pytest.mark.parametrize("other", ["", "A" * 32, "a" * 31, "a" * 33, "a" * 31 + "g", "a" * 32 + "\n"])
def test_only_32_digits_in_small_letters_are_16_bytes_and_one_other_makes_all_of_them_text(other):
    assert numbered(["ab" * 16, ZEROS])[0].keys.itemsize == 16
    ids, numbers = numbered([ZEROS], ["ab" * 16, other])
    assert not ids.hexadecimal
    assert ids.names(numbers).to_pylist() == [ZEROS, "ab" * 16, other]
