"""Formats: records from every shape, and the message if no row has the shape."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.cli import InputError
from sft.conversation import Conversation
from sft.formats.chat_forms import AUTO, FORMATS, GROUP, FieldCounts, check_read, select_rows
from sft.formats.detect import decide_read
from sft.formats.messages import normalize
from sft.formats.raw_files import read_objects
from sft.formats.records import ChatRow
from sft.params.data import Read
from tests.support.raw_rows import read_rows

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CHAT = {"messages": [USER, ANSWER]}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    "messages tools meta conversations from value system instruction input output prompt completion id "
    "question function ground_truth responses_create_params response type content problems solution".split()
)
NEAR_MISS = st.dictionaries(KEYS, ANY_JSON | st.dictionaries(KEYS, ANY_JSON, max_size=3), max_size=5)


def write(folder: Path, name: str, *objects: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in objects))


def records(folder: Path, format: str, **mapping: Any) -> list[dict[str, Any]]:
    rows = list(read_rows(folder, format, **mapping))
    assert [row.fault for row in rows] == [""] * len(rows)
    return [row.record for row in rows if row.record is not None]


def test_an_unknown_format_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'openia'.*'openai'.*sharegpt"):
        read_rows(tmp_path, "openia")


def test_auto_is_a_format_whose_fields_are_found() -> None:
    check_read("auto", {GROUP: "book"}, {})
    with pytest.raises(InputError, match=r"'auto' finds the fields itself"):
        check_read("auto", {"messages": "x"}, {})


@pytest.mark.parametrize("format", [format for format in FORMATS if format != AUTO])
@settings(max_examples=40)
@given(value=NEAR_MISS | ANY_JSON)
def test_no_object_whatever_makes_a_format_raise(tmp_path: Path, format: str, value: Any) -> None:
    write(tmp_path, "a.jsonl", value)
    write(tmp_path, "possible_answer/a.jsonl", value)
    write(tmp_path, "locale/fr/a.po", json.dumps(value, indent=1))
    rows = []
    with contextlib.suppress(InputError):  # at the end: no row has the fields
        for row in read_rows(tmp_path, format):
            rows.append(row)
    for row in rows:
        assert (row.record is None) == bool(row.fault)


def conversations(folder: Path, format: str, **mapping: Any) -> list[dict[str, Any]]:
    """Messages and tools of rows that can all be read."""
    found = []
    for row in read_rows(folder, format, **mapping):
        assert isinstance(row, ChatRow), row
        assert row.record is not None
        outcome = normalize(row.record, row.columns, row.columns_read)
        assert isinstance(outcome, Conversation), outcome
        found.append({"messages": outcome.messages, "tools": outcome.tools})
    return found


def test_openai_takes_messages_and_tools_as_json_text_and_knows_what_it_read(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"messages": json.dumps(CHAT["messages"]), "tools": '[{"name": "f"}]', "uuid": "7"})
    (row,) = read_rows(tmp_path, "openai")
    assert isinstance(row, ChatRow)
    assert row.record == {**CHAT, "tools": [{"name": "f"}]}
    assert row.columns_read == {"messages", "tools"}
    assert row.columns["uuid"] == "7"


def test_sharegpt_turns_and_calls_become_messages(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Weather in Paris?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
        {"from": "observation", "value": "mild"},
        {"from": "gpt", "value": "It is mild."},
    ]
    write(tmp_path, "a.jsonl", {"conversations": turns, "tools": '[{"name": "weather", "parameters": {}}]'})
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    assert conversations(tmp_path, "sharegpt") == [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Weather in Paris?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "mild"},
                {"role": "assistant", "content": "It is mild."},
            ],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        }
    ]


@pytest.mark.parametrize(
    ("record", "question"),
    [
        ({"instruction": "Add.", "input": "2 + 3", "output": "5"}, "Add.\n\n2 + 3"),
        ({"instruction": "Add 2 and 3.", "input": "", "output": "5"}, "Add 2 and 3."),
        ({"prompt": "2 + 3 =", "completion": "5"}, "2 + 3 ="),
        (
            {
                "prompt": [{"role": "user", "content": "2+3"}],
                "completion": [{"role": "assistant", "content": "5"}],
            },
            "2+3",
        ),
    ],
)
def test_alpaca_reads_instructions_and_prompts(tmp_path: Path, record: dict[str, Any], question: str) -> None:
    write(tmp_path, "a.jsonl", record)
    (found,) = records(tmp_path, "alpaca")
    assert found["messages"] == [{"role": "user", "content": question}, {"role": "assistant", "content": "5"}]


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"input": [USER], "output": "Hello"}, [USER, ANSWER]),
        ({"prompt": [USER], "completion": "Hello", "system": "S"}, [{"role": "system", "content": "S"}, USER, ANSWER]),
        ({"input": "Hi", "output": [ANSWER]}, [USER, ANSWER]),
        ({"prompt": "Hi", "completion": [USER, ANSWER]}, [USER, ANSWER]),
        ({"instruction": "Hi", "output": "Hello", "history": [["Hi", "Hello"]]}, [USER, ANSWER, USER, ANSWER]),
        ({"instruction": "Hi", "output": "Hello", "history": [USER, ANSWER]}, [USER, ANSWER, USER, ANSWER]),
        ({"prompt": json.dumps([USER], indent=2), "completion": "Hello"}, [USER, ANSWER]),
        (
            {"prompt": '[{"role": "admin"}]', "completion": "Hello"},
            [{**USER, "content": '[{"role": "admin"}]'}, ANSWER],
        ),
    ],
)
def test_alpaca_reads_messages_and_earlier_turns(tmp_path: Path, record: dict[str, Any], messages: list[Any]) -> None:
    write(tmp_path, "a.jsonl", record)
    (found,) = records(tmp_path, "alpaca")
    assert found["messages"] == messages


@pytest.mark.parametrize(
    "history", [["Hi"], [{"query": "Hi", "response": "Hello"}], {"Hi": "Hello"}, [["Hi", "Hello", "Hi"]], [None]]
)
def test_a_history_of_another_shape_is_a_fault(tmp_path: Path, history: Any) -> None:
    """Two letters, or the two keys of an object, are no question and answer."""
    write(tmp_path, "a.jsonl", {"instruction": "Hi", "output": "Hello", "history": history})
    (row,) = read_rows(tmp_path, "alpaca")
    assert (row.record, "history" in row.fault) == (None, True)


def test_the_loss_of_a_turn_stays_with_it(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "weight": 0}]
    write(tmp_path, "a.jsonl", {"conversations": turns})
    (found,) = conversations(tmp_path, "sharegpt")
    assert found["messages"] == [USER, {**ANSWER, "loss": False}]


# Fields of a source


def test_fields_are_read_by_the_names_of_the_source(tmp_path: Path) -> None:
    tool = {"name": "now", "parameters": {}}
    write(tmp_path, "a.jsonl", {"data": {"conversation": [USER, ANSWER]}, "functions_json": json.dumps([tool])})
    (found,) = records(tmp_path, "openai", fields={"messages": "data.conversation", "tools": "functions_json"})
    assert (found["messages"], found["tools"]) == ([USER, ANSWER], [tool])


def test_a_mapped_field_is_never_taken_from_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"chosen": [USER, ANSWER]}, {"messages": [USER, ANSWER]})
    good, lacking = read_rows(tmp_path, "openai", fields={"messages": "chosen"})
    assert good.record is not None
    assert lacking.fault == "no field messages; the row has messages (list)"


@pytest.mark.parametrize(
    ("format", "record", "lines"),
    [
        ("openai", {"conversations": [USER]}, "  read: {format: openai, fields: {messages: conversations}}"),
        ("openai", {"a": 1, "data": {"turns": [USER]}}, "  read: {format: openai, fields: {messages: data.turns}}"),
        ("openai", {"turns": json.dumps([USER])}, "  read: {format: openai, fields: {messages: turns}}"),
        (
            "openai",
            {"chat": [USER], "functions": [{"name": "f", "parameters": {}}]},
            "  read: {format: openai, fields: {messages: chat, tools: functions}}",
        ),
        ("openai", {"conversations": [{"from": "human", "value": "Hi"}]}, "  read: sharegpt"),
        ("openai", {"prompt": "a", "completion": "b"}, "  read: alpaca"),
        (
            "openai",
            {"input": [USER], "output": "b"},
            "  read: {format: alpaca, fields: {prompt: input, completion: output}}",
        ),
        (
            "alpaca",
            {"question": "a", "answer": "b"},
            "  read: {format: alpaca, fields: {prompt: question, completion: answer}}",
        ),
        ("openai", {"instruction": "a", "input": "", "output": "b"}, "  read: alpaca"),
        (
            "alpaca",
            {"instruction": "a", "context": "c", "response": "b", "category": "qa"},
            "  read: {format: alpaca, fields: {input: context, output: response}}",
        ),
        ("sharegpt", {"messages": [USER]}, "  read: openai"),
        ("openai", {"text": "a"}, "{our name: name in the source}"),
    ],
)
def test_where_no_row_has_the_fields_the_ones_found_and_the_lines_that_fit_are_in_the_message(
    tmp_path: Path, format: str, record: dict[str, Any], lines: str
) -> None:
    write(tmp_path, "a.jsonl", "{broken", record, record)
    with pytest.raises(InputError) as error:
        list(read_rows(tmp_path, format))
    assert f"a.jsonl:2: no row has what format {format!r} reads" in str(error.value)
    assert all(f"{name} (" in str(error.value) for name in record)
    assert str(error.value).endswith(lines) or lines in str(error.value)


def test_following_the_advice_reads_the_rows(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"chat": {"turns": [USER, ANSWER]}})
    with pytest.raises(InputError, match=r"fields: \{messages: chat\.turns\}"):
        list(read_rows(tmp_path, "openai"))
    assert len(records(tmp_path, "openai", fields={"messages": "chat.turns"})) == 1


@pytest.mark.parametrize("names", [("instruction", "input", "output"), ("instruction", "context", "response")])
def test_following_the_advice_loses_no_text_beside_the_instruction(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The first row, which has none, decides."""
    for text in ("", "of 1 and 2"):
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write(json.dumps(dict(zip(names, ("Take the sum.", text, "3"), strict=True))) + "\n")
    with pytest.raises(InputError) as error:
        list(read_rows(tmp_path, "openai"))
    advice = str(error.value).partition("write:\n")[2]
    renamed = "  read: {format: alpaca, fields: {input: context, output: response}}"
    assert advice in ("  read: alpaca", renamed)
    fields = {"input": "context", "output": "response"} if advice == renamed else {}
    asked = [found["messages"][0]["content"] for found in records(tmp_path, "alpaca", fields=fields)]
    assert asked == ["Take the sum.", "Take the sum.\n\nof 1 and 2"]


def test_a_mapping_that_fits_no_row_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", CHAT)
    with pytest.raises(InputError, match=r"fields: messages: .*'conversation'"):
        list(read_rows(tmp_path, "openai", fields={"messages": "conversation"}))


def test_rows_without_the_fields_among_others_are_faults(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"text": "a"}, CHAT, {"id": 1, "text": "b"})
    rows = list(read_rows(tmp_path, "openai"))
    assert [row.fault for row in rows] == [
        "no field messages; the row has text (text)",
        "",
        "no field messages; the row has id (int), text (text)",
    ]


def test_a_field_that_the_format_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fields: .*'openai'.*'mesages'.*'messages'"):
        read_rows(tmp_path, "openai", fields={"mesages": "chat"})


@pytest.mark.parametrize("mapping", [{"fields": {"messages": "a"}}, {"select": {"a": ["b"]}}])
def test_a_package_is_read_as_it_is(tmp_path: Path, mapping: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="format 'bfcl'"):
        read_rows(tmp_path, "bfcl", **mapping)


# Rows that are wanted


def test_rows_of_other_values_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {**CHAT, "used_in": "nano_v3"}, {**CHAT, "used_in": ["super_v3"]}, CHAT, "{broken")
    counts = FieldCounts(unseen_select={"used_in"})
    rows = list(select_rows(read_objects(tmp_path), {"used_in": ["nano_v3"]}, counts))
    assert [row.location for row in rows] == ["a.jsonl:1", "a.jsonl:4"], "what cannot be read is still rejected"
    assert (counts.not_selected, counts.unseen_select) == (2, set())


def test_nothing_is_filtered_unless_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", CHAT, {**CHAT, "used_in": "super_v3"})
    assert all("meta" not in record for record in records(tmp_path, "openai"))


def test_a_field_that_no_row_has_is_a_mistake_and_no_filter(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", CHAT, CHAT)
    with pytest.raises(InputError, match=r"select: .*usedin"):
        list(read_rows(tmp_path, "openai", select={"usedin": ["nano_v3"]}))


def test_a_source_of_other_values_only_is_no_mistake(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {**CHAT, "used_in": "super_v3"})
    assert list(read_rows(tmp_path, "openai", select={"used_in": ["nano_v3"]})) == []


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}, "{prompt: prompt, completion: chosen}"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "{messages: chosen}"),
        ({"chosen": "Human: Hi", "rejected": "Human: Hi"}, ""),
    ],
)
def test_preference_data_is_named_with_the_line_that_trains_the_chosen_answers(tmp_path, record, line):
    write(tmp_path, "a.jsonl", record)
    with pytest.raises(InputError) as error:
        list(read_rows(tmp_path, "openai"))
    assert "preference data" in str(error.value)
    assert line.replace("prompt: prompt, ", "") in str(error.value)


def test_the_instructions_of_a_responses_request_are_its_system_message(tmp_path: Path) -> None:
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}
    write(tmp_path, "a.jsonl", {"input": [USER], "output": [answer], "instructions": "Be kind."})
    (found,) = conversations(tmp_path, "alpaca")
    assert found["messages"] == [{"role": "system", "content": "Be kind."}, USER, ANSWER]


def test_of_a_prompt_and_a_completion_the_completion_alone_is_trained(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", {"prompt": [USER, ANSWER, USER], "completion": [ANSWER], "system": "Be kind."})
    (found,) = conversations(tmp_path, "alpaca")
    assert [message.get("loss", True) for message in found["messages"]] == [True, True, False, True, True]


@pytest.mark.parametrize("name", ["systemInstruction", "system_instruction"])
@pytest.mark.parametrize("value", ["Be kind.", {"parts": [{"text": "Be kind."}]}])
def test_the_system_instruction_of_gemini_is_a_system_message(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, "a.jsonl", {**CHAT, name: value})
    outcome = normalize(*records(tmp_path, "openai"))
    assert isinstance(outcome, Conversation)
    assert outcome.messages == [{"role": "system", "content": "Be kind."}, USER, ANSWER]


@pytest.mark.parametrize("format", ["openai", "auto"])
def test_rows_name_their_group_in_the_column_that_read_says(tmp_path: Path, format: str) -> None:
    write(tmp_path, "a.jsonl", {**CHAT, "meta": {"book": "Emma"}, "group": 1}, {**CHAT, "group": 2})
    read, _ = decide_read(tmp_path, Read(format=format, fields={"group": "meta.book"}))
    assert (read.format, read.fields) == ("openai", {"group": "meta.book"})
    rows = [row for row in read_rows(tmp_path, read.format, fields=read.fields) if isinstance(row, ChatRow)]
    assert [row.group for row in rows] == ["Emma", None]
    assert "meta.book" in rows[0].columns_read
    with pytest.raises(InputError, match=r"read\.fields: group: no row has 'meta.bok'"):
        list(read_rows(tmp_path, "openai", fields={"group": "meta.bok"}))
