"""What people's tools write as text: flags, messages and lists in columns of CSV, tags in other letters."""

import json

import pytest

from sft.conversation import Conversation, Rejection
from sft.formats.chat_forms import FieldCounts, convert_chats
from sft.formats.messages import normalize
from sft.formats.raw_files import Row
from sft.formats.records import ChatRow

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TURNS = [USER, ANSWER, USER, ANSWER]


def read(row, format="openai"):
    (chat,) = convert_chats([Row("f:1", row)], format, {}, {}, FieldCounts())
    assert isinstance(chat, ChatRow), chat
    assert chat.record is not None, chat.fault
    return normalize(chat.record, chat.columns, chat.columns_read)


@pytest.mark.parametrize(
    "columns",
    [
        {"opts": "{'loss_mask': [0, 0, 0, 1]}"},
        {"metadata": ' {"loss_mask": [0, 0, 0, 1]}'},
        {"opts": '{"lossMask": [0, 0, 0, 1]}'},
        {"loss_mask": "[False, False, False, True]"},
    ],
)
def test_flags_in_text_mask_their_turns(columns):
    trained = [message.get("loss", True) for message in read({"messages": TURNS, **columns}).messages]
    assert trained[1::2] == [False, True]


@pytest.mark.parametrize("label", [False, "False", " false"])
def test_an_answer_that_its_row_calls_bad_is_refused(label):
    outcome = read({"prompt": "a", "completion": "b", "label": label}, "alpaca")
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "rejected-answer"


def test_messages_as_python_writes_them_are_messages_in_every_column():
    row = {"prompt": "[{'role': 'user', 'content': 'a'}]", "completion": "[{'role': 'assistant', 'content': 'b'}]"}
    assert read(row, "alpaca").messages == [USER, ANSWER]


@pytest.mark.parametrize("write", [lambda value: value, json.dumps, str], ids=["value", "JSON", "Python"])
@pytest.mark.parametrize(
    "system", [{"role": "system", "content": "Be kind."}, [{"role": "system", "content": "Be kind."}]]
)
def test_a_system_column_may_hold_a_message_instead_of_its_text(system, write):
    system_message = {"role": "system", "content": "Be kind."}
    assert read({"system": write(system), "messages": [USER, ANSWER]}).messages == [system_message, USER, ANSWER]
    assert read({"system": write(system), "messages": [system_message, USER, ANSWER]}).messages[1:] == [USER, ANSWER]


@pytest.mark.parametrize("text", ['{"role": "a chef", "content": "a"}', '{"role": "system", "task": "a"}', "{'role"])
def test_a_system_text_that_is_json_of_its_own_stays_text(text):
    assert read({"system": text, "messages": [USER, ANSWER]}).messages[0] == {"role": "system", "content": text}


def test_a_system_column_with_a_message_of_another_role_is_refused():
    (row,) = convert_chats([Row("f:1", {"system": str(USER), "messages": TURNS})], "openai", {}, {}, FieldCounts())
    assert row.record is None
    assert "expected a text or messages of role system" in row.fault


@pytest.mark.parametrize("empty", ["None", "", "[]", None])
def test_no_tools_and_no_calls_as_people_s_tools_write_them(empty):
    answer = {**ANSWER, "tool_calls": empty, "function_call": empty}
    assert read({"messages": [USER, answer], "tools": empty}) == Conversation([USER, ANSWER], None)


def test_empty_calls_of_a_channel_are_no_calls():
    analysis = {"role": "assistant", "channel": "analysis", "content": "t", "tool_calls": []}
    final = {"role": "assistant", "channel": "final", "content": "b"}
    assert read({"messages": [USER, analysis, final]}).messages[1] == {**ANSWER, "reasoning_content": "t"}


def test_tags_around_a_thought_may_have_any_letters_and_those_of_the_answer_stay():
    (_, answer) = read({"messages": [USER, {**ANSWER, "content": "<Thinking>t</Thinking>b </THINKING>"}]}).messages
    assert answer == {"role": "assistant", "content": "b </THINKING>", "reasoning_content": "t"}


def test_a_long_run_of_blank_lines_in_a_thought_is_read():
    """Looked at from each blank line to all others, it would take minutes."""
    thought = "a" + "\n" * 200_000 + "b"
    (_, answer) = read({"messages": [USER, {**ANSWER, "content": f"<thinking>{thought}</thinking>c"}]}).messages
    assert answer == {"role": "assistant", "content": "c", "reasoning_content": thought}
