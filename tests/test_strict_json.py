"""JSON from outside: what is an error, and that every value can be written again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft import strict_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
SPACE = st.sampled_from(["", "", " ", "\n\t"])
PIECES = [
    "a",
    ":",
    '\\"',
    "\\\\",
    "\\u003a",
    "\\u0022",
    "\\ud83d\\udc4d",
    "\\uD800",
    "\ud800",
    "é",
    "\\/",
    "\\u0001",
    "\x7f",
    " ",
]
PIECES += ["\x01", "\ufeff", "[", "}", "\\", "9" * 20, "\\x"]
NUMBERS = [
    "1",
    "-0",
    "-0.0",
    "0.1",
    "1E5",
    "1e999",
    "-1e-999",
    "1e22",
    "5e-324",
    "01",
    "1.",
    "NaN",
    "-Infinity",
    "9" * 4301,
]
NUMBERS += [str(sign * (1 << bits) + one) for bits in (53, 63, 64, 70) for sign in (1, -1) for one in (-1, 0, 1)]
NUMBERS += ["12345678901234567890.5", "0.12345678901234567890123", "1234567890123456789e3", "true", "null"]


def joined(begin: str, items: st.SearchStrategy[str], end: str) -> st.SearchStrategy[str]:
    spaced = st.builds("{}{}{}".format, SPACE, items, SPACE)
    return st.lists(spaced, max_size=4).map(lambda found: begin + ",".join(found) + end)


KEYS = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"a\\\\"', '""', '":"'])
TEXTS = st.lists(st.sampled_from(PIECES), max_size=4).map(lambda pieces: f'"{"".join(pieces)}"')
JSON_TEXTS = st.recursive(
    st.sampled_from(NUMBERS) | TEXTS | st.just("[" * 65 + "]" * 65),
    lambda inner: (
        joined("[", inner, "]") | joined("{", st.builds("{}{}:{}{}".format, KEYS | TEXTS, SPACE, SPACE, inner), "}")
    ),
)


def outcome(parse, text):
    """The exact result for a text: the value or the error."""
    try:
        return repr(parse(text))
    except ValueError as error:
        return type(error), str(error)


@given(JSON_TEXTS, st.sampled_from(["", "", "", "\ufeff", "]", ","]), st.booleans())
def test_the_fast_reader_agrees_with_the_strict_one_on_every_text(text, before, is_text):
    text = before + text
    given_text = text if is_text else text.encode("utf-8", "surrogatepass")
    assert outcome(strict_json.parse, given_text) == outcome(strict_json._parse_strictly, given_text)


@given(JSON)
def test_json_is_read_as_it_was_written(value):
    for text in (json.dumps(value), json.dumps(value, indent=1).encode(), b"\xef\xbb\xbf" + json.dumps(value).encode()):
        assert strict_json.parse(text) == value


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
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a'"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"\\uDC00": 1}', "half of a surrogate pair"),
        ("[" * 65 + "]" * 65, "nested too deeply: more than 64 levels"),
        ("[" * 100_000, "nested too deeply: more than 64 levels"),
        ('{"a":' * 100_000, "nested too deeply: more than 64 levels"),
        (b'"\xff"', "can't decode byte 0xff"),
    ],
)
def test_what_lenient_readers_accept_is_an_error(text, fault):
    with pytest.raises(ValueError, match=fault):
        strict_json.parse(text)


def test_valid_texts_near_the_limits_are_read():
    assert strict_json.parse("[" * 64 + "]" * 64)
    assert strict_json.parse("[" + "[]," * 1000 + "[]]")
    assert strict_json.parse('"\\ud83d\\udc4d"') == "👍"
    assert strict_json.parse("[1e308, -0.0, 1e-999]") == [1e308, 0.0, 0.0]
    assert strict_json.parse('[{"a": 1}, {"a": 2}]') == [{"a": 1}, {"a": 2}]
