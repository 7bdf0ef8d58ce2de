"""Calls: the parts of an answer that hold one or several."""

import pytest

from sft.formats.calls import calls_of_part, read_call
from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead

CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "f", "arguments": {}},
        {"text": '{"name": "f", "arguments": {}}'},
        {"text": [{"name": "f"}]},
        {"text": {"function": {"name": "f", "arguments": "{}"}}},
    ],
)
def test_a_part_with_a_call_in_its_keys_or_its_value_is_the_call(keys):
    assert calls_of_part(keys, NotRead()) == [CALL]


def test_a_call_without_a_name_rejects_the_row():
    with pytest.raises(UnfitRowError, match="a function with a name"):
        read_call({"arguments": {}}, NotRead())
