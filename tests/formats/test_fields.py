"""Fields: dotted paths, wanted values, and the advice that is given; more of it in test_formats.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.formats.fields import is_selected, listed, lookup, rename, suggest_read

TURNS = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "value"),
    [("a", {"b": {"c": 1}}), ("a.b.c", 1), ("x.y", 2), ("a.c", None), ("a.b.c.d", None), ("", None)],
)
def test_a_path_finds_its_field_or_nothing(path, value):
    assert lookup({"a": {"b": {"c": 1}}, "x.y": 2}, path) == value


def test_renaming_adds_our_names_and_changes_nothing_else():
    record = {"a": 1, "b": 2}
    assert rename(record, {}) is record
    assert rename(record, {"messages": "a", "tools": "none"}) == {"a": 1, "b": 2, "messages": 1, "tools": None}
    assert record == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("value", "is_found"),
    [("x", True), ("x, y", True), (["y", "x"], True), ("xy", False), ([], False), (None, False), ({}, False)],
)
def test_a_value_is_selected_alone_in_a_list_or_between_commas(value, is_found):
    assert is_selected(value, ["x"]) == is_found


def test_numbers_and_truths_are_compared_as_json_writes_them():
    assert is_selected(True, ["true"])
    assert is_selected(3, ["3"])
    assert not is_selected(False, ["False"])


def test_the_first_record_that_can_be_read_decides():
    assert (
        suggest_read([{"x": 1}, {"chat": TURNS}, {"talk": TURNS}])
        == "  read: {format: openai, fields: {messages: chat}}"
    )
    assert suggest_read([{"x": 1}]) == ""
    assert suggest_read([]) == ""


def test_messages_are_preferred_to_other_lists_of_roles_further_in():
    assert suggest_read([{"meta": {"old": TURNS}, "new": TURNS}]) == "  read: {format: openai, fields: {messages: new}}"


def test_fields_are_listed_with_what_they_hold_and_not_without_end():
    assert listed({"a": "x", "b": {}, "c": None, "d": True, "e": 1}) == (
        "a (text), b (object), c (null), d (true or false), e (int)"
    )
    assert listed({}) == "no fields"
    assert len(listed({str(n): n for n in range(10_000)})) == 500


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.just(json.dumps(TURNS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("role content from value prompt output tools name a b".split()), inner, max_size=4
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "output", "a", "b.c"]), JSON, max_size=4))
def test_advice_on_any_record_is_text(record):
    assert isinstance(suggest_read([record]), str)
