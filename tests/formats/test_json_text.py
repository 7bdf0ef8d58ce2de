"""JSON in text fields, and literals of Python in its place: exactly the values that JSON can hold."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.formats.json_text import parse_text, parsed_or_same

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab'", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES.map(lambda value: [value, "it's"]))
def test_a_value_is_the_same_as_json_and_as_python_writes_it(value):
    assert parse_text(repr(value)) == parse_text(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "{'a': 1, 'a': 2}",
        "{1: 'a'}",
        "{**{'a': 1}}",
        "['a', (1, 2)]",
        "{'a'}",
        "['a', 1j]",
        "[b'a']",
        "['a', 1e999]",
        "['\\ud800']",
        "['\\d']",
        "[open('a')]",
        "[f'{a}']",
        "['a' for a in 'b']",
        "'a'",
        "[" * 70 + "'a'" + "]" * 70,
        "['a', " + "-" * 50_000 + "1]",
        "['a' 'b']",
        "['a'\n 'b']",
        "{'a': 'b' # 'c'\n}",
        "['''a''']",
        "['a',,]",
        "[,'a']",
        "{'a':,}",
        "['a', 01]",
        "['a', 1_000]",
        "[True False, '']",
        "['a\nb']",
        "['" + "\\n" * 100_000,
        "['a' " + " " * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_what_json_cannot_hold_stays_text(text):
    assert parsed_or_same(text) == text
    with pytest.raises(ValueError, match=r"."):
        parse_text(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("['a',\n]", ["a"]),
        ("{'a': True ,}", {"a": True}),
        ("[u'a', '\\x41', \"it's\"]", ["a", "A", "it's"]),
        ("['" + "a" * 300_000 + "']", ["a" * 300_000]),
    ],
    ids=lambda text: str(text)[:20],
)
def test_what_python_writes_is_read_at_any_length(text, value):
    assert parse_text(text) == value
