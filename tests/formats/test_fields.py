"""Fields: dotted paths, wanted values, and the advice that is given; more of it in test_formats.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.formats.fields import is_selected, listed, lookup, merged, rename, suggest_read

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


def line(*records):
    suggestion = suggest_read(merged(records))
    return suggestion.line().strip() if suggestion else ""


def test_the_first_value_of_each_field_that_is_not_empty_decides():
    records = [{"x": 1}, {"chat": []}, {"chat": TURNS}]
    assert line(*records) == "read: {format: openai, fields: {messages: chat}}"
    assert line({"x": 1}) == line() == ""


def test_messages_are_preferred_to_other_lists_of_roles_further_in():
    assert line({"meta": {"old": TURNS}, "new": TURNS}) == "read: {format: openai, fields: {messages: new}}"
    assert (
        line({"question": "a", "answer": "b", "messages": [*TURNS, {"role": "assistant", "content": "b"}]})
        == "read: openai"
    )


CALLS = json.dumps([{"name": "f", "arguments": {"x": 1}}])


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"prompt": "a", "context": "c", "response": "b"}, "instruction: prompt, input: context, output: response"),
        (
            {"id": 1, "system_prompt": "Be kind.", "question": "a", "response": "b"},
            "prompt: question, completion: response, system: system_prompt",
        ),
        ({"query": "a", "answers": CALLS, "tools": json.dumps([{"name": "f"}])}, "prompt: query, calls: answers"),
        (
            {"question": "a", "solution": "s", "thinking_trajectories": ["So it is."], "attempt": "b"},
            "prompt: question, completion: attempt, reasoning_content: thinking_trajectories",
        ),
        ({"question": "a", "answer": "b", "reasoning": "on"}, "prompt: question, completion: answer"),
        ({"input": [{"type": "message", "role": "user", "content": "a"}], "output": [{"type": "reasoning"}]}, None),
    ],
    ids=["context", "OpenOrca", "xLAM", "s1K", "a switch", "Responses"],
)
def test_no_column_that_says_something_about_the_conversation_is_left_out(record, fields):
    fields = fields or "prompt: input, completion: output"
    assert line(record) == f"read: {{format: alpaca, fields: {{{fields}}}}}"


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
    suggestion = suggest_read(record)
    assert suggestion is None or suggestion.line().startswith("  read: ")


def test_system_instructions_beside_messages_of_a_span_are_its_system_message():
    inside = {"gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "a"}]}]}
    inside["gen_ai.output.messages"] = [{"role": "assistant", "parts": [{"type": "text", "content": "b"}]}]
    inside["gen_ai.system_instructions"] = '[{"type": "text", "content": "S"}]'
    for row, prefix in ((inside, ""), ({"attributes": inside}, "attributes.")):
        suggestion = suggest_read(row)
        assert suggestion is not None
        assert dict(suggestion.fields)["system"] == f"{prefix}gen_ai.system_instructions"
