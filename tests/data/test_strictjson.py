"""JSON from outside: what is refused, and that what passes can be written again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data import strictjson

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_whatever_is_json_comes_back(value):
    for text in (json.dumps(value), json.dumps(value, indent=1).encode(), b"\xef\xbb\xbf" + json.dumps(value).encode()):
        assert strictjson.parse(text) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[1] 2", "Extra data"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "the number 1e999 is larger than a float can be"),
        ("9" * 5000, "4300 digits"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"\\uDC00": 1}', "half of a surrogate pair"),
        ("[" * 65 + "]" * 65, "nested too deeply: more than 64 levels"),
        ("[" * 100_000, "nested too deeply: more than 64 levels"),
        ('{"a":' * 100_000, "nested too deeply: more than 64 levels"),
        (b'"\xff"', "can't decode byte 0xff"),
    ],
)
def test_what_others_forgive_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        strictjson.parse(text)


def test_what_is_only_almost_so_passes():
    assert strictjson.parse("[" * 64 + "]" * 64)
    assert strictjson.parse("[" + "[]," * 1000 + "[]]")
    assert strictjson.parse('"\\ud83d\\udc4d"') == "👍"
    assert strictjson.parse("[1e308, -0.0, 1e-999]") == [1e308, 0.0, 0.0]
    assert strictjson.parse('[{"a": 1}, {"a": 2}]') == [{"a": 1}, {"a": 2}]
