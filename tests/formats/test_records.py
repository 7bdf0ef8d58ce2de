"""Records in OpenAI form: what a format may return, and what its shape must be."""

from typing import Any

import pytest

from sft.formats.raw_files import Row
from sft.formats.records import convert_row, convert_rows, openai_call, openai_tool, question_and_answer


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({}, "'messages' is missing"),
        ({"messages": {"role": "user"}}, "messages must be a list of objects"),
        ({"messages": ["Hi"]}, "messages must be a list of objects"),
        ({"messages": [], "tools": [1]}, "tools must be a list of objects"),
        ({"messages": [], "meta": 1}, "meta must be an object"),
        ({"messages": [], "meta": {"refuse": ["so"]}}, "meta.refuse must be one of closed-model"),
    ],
)
def test_a_record_that_no_reader_could_use_is_a_fault(record: dict[str, Any], fault: str) -> None:
    row = convert_row(Row("a.jsonl:1", record, raw="{}"), lambda record, location: record)
    assert row == Row("a.jsonl:1", None, row.fault, "{}")
    assert fault in row.fault


def test_a_sound_record_comes_without_the_text_of_its_row() -> None:
    row = Row("a.jsonl:1", {"messages": [], "meta": {"refuse": "no-answer"}}, raw="{}")
    assert convert_row(row, lambda record, location: record) == Row(row.location, row.record)


def test_an_object_of_another_shape_is_a_fault_and_the_next_row_is_converted() -> None:
    rows = [Row("a:1", {"q": 1}), Row("a:2", None, "broken"), Row("a:3", {"q": "Who?", "a": "I."})]

    def to_record(record: dict[str, Any], location: str) -> dict[str, Any]:
        return {"messages": question_and_answer(record["q"], record["a"]), "meta": {"location": location}}

    missing, broken, converted = convert_rows(rows, to_record)
    assert (missing.record, missing.fault) == (None, "not of this format: 'a' is missing")
    assert broken == rows[1]
    assert converted.record == {
        "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}],
        "meta": {"location": "a:3"},
    }


def test_a_question_may_be_a_list_of_messages() -> None:
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Who?"}]
    assert question_and_answer(messages, "I.") == [*messages, {"role": "assistant", "content": "I."}]
    with pytest.raises(ValueError, match="found int"):
        question_and_answer("Who?", 1)


def test_calls_and_tools_take_openai_form() -> None:
    assert openai_call("c1", {"name": "f", "arguments": {"x": 1}, "other": 2}) == {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": {"x": 1}},
    }
    wrapped = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert openai_tool({"name": "f", "parameters": {}, "strict": True, "description": None}) == wrapped
    assert openai_tool(wrapped) == wrapped


def test_a_list_of_texts_is_no_answer():
    with pytest.raises(ValueError, match="texts or lists of messages"):
        question_and_answer("Hi", ["a", "b"])
