"""Conversation ids: each has one number, in sorted order, and comes back as the same text."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.packing.conversation_ids import number_ids

HEXADECIMAL = st.text("0123456789abcdef", min_size=32, max_size=32)
TEXT = st.text(st.characters(min_codepoint=2, exclude_categories=["Cs"]), max_size=40)
ZEROS = "0" * 32


def numbered(*arrays):
    return number_ids(lambda: [pa.array(texts, pa.string()) for texts in arrays])


@given(st.lists(st.lists(HEXADECIMAL | st.just(ZEROS))) | st.lists(st.lists(HEXADECIMAL | TEXT)))
def test_ids_come_back_as_text_and_are_numbered_in_sorted_order(arrays):
    ids, numbers = numbered(*arrays)
    texts = [text for array in arrays for text in array]
    assert ids.texts(numbers).to_pylist() == texts
    assert ids.texts(np.arange(len(ids))).to_pylist() == sorted(set(texts))


@given(st.lists(HEXADECIMAL, max_size=20), st.lists(HEXADECIMAL | TEXT, max_size=20), st.booleans())
def test_known_ids_are_found_and_no_others(known, others, hexadecimal):
    ids, _ = numbered(known if hexadecimal else [*known, "c1"])
    wanted = pa.array([*known, *others], pa.string())
    expected = {text: number for number, text in enumerate(ids.texts(np.arange(len(ids))).to_pylist())}
    assert ids.find(wanted).tolist() == [expected.get(text, -1) for text in wanted.to_pylist()]
    assert ids.find(wanted.slice(1)).tolist() == ids.find(wanted).tolist()[1:]


@pytest.mark.parametrize("other", ["", "A" * 32, "a" * 31, "a" * 33, "a" * 31 + "g", "a" * 32 + "\n"])
def test_ids_take_16_bytes_only_if_all_are_32_lower_case_digits(other):
    assert numbered(["ab" * 16, ZEROS])[0].keys.itemsize == 16
    ids, numbers = numbered([ZEROS], ["ab" * 16, other])
    assert not ids.hexadecimal
    assert ids.texts(numbers).to_pylist() == [ZEROS, "ab" * 16, other]
