"""Conversations without roles: found by `read: auto`, and read exactly."""

import json

import pytest

from sft.conversation import Conversation
from sft.formats.chat_forms import FieldCounts, convert_chats
from sft.formats.detect import detect
from sft.formats.fields import suggest_read
from sft.formats.messages import normalize
from sft.formats.not_read import NotRead
from sft.formats.raw_files import Row
from sft.formats.records import ChatRow
from sft.formats.turn_lists import has_turns
from sft.params.data import Read
from tests.support.raw_rows import write_lines

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    ("row", "messages", "not_read"),
    [
        ({"conversation": [{"input": "a", "output": "b"}] * 2, "source": "x"}, [USER, ANSWER] * 2, ["source"]),
        ({"conversation": json.dumps([{"input": "a", "output": "b"}])}, [USER, ANSWER], []),
        ({"conversation": [{"system": "S", "input": "a", "output": "b"}]}, [SYSTEM, USER, ANSWER], []),
        (
            {
                "conversation": [
                    {"input": "a", "output": "b", "output_with_loss": False},
                    {"input": "a", "output": "b", "id": 7},
                ]
            },
            [USER, {**ANSWER, "loss": False}, USER, ANSWER],
            ["messages[].id"],
        ),
        ({"conversation": [{"human": "a", "assistant": "b"}]}, [USER, ANSWER], []),
        ({"conversations": [["a", "b"], ["a", "b"]]}, [USER, ANSWER] * 2, []),
        ({"id": "1", "data": ["a", "b", "a", "b"]}, [USER, ANSWER] * 2, ["id"]),
        ({"messages": [["system", "S"], ["Human", "a"], ["gpt", "b"]]}, [SYSTEM, USER, ANSWER], []),
        ({"data": ["User: a", "Assistant: b"]}, [USER, ANSWER], []),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_list_without_roles_is_found_and_read(tmp_path, row, messages, not_read):
    write_lines(tmp_path, "a.jsonl", row)
    suggestion, _ = detect(tmp_path, Read(format="auto"))
    (chat,) = convert_chats([Row("a:1", row)], suggestion.format, dict(suggestion.fields), {}, FieldCounts())
    assert isinstance(chat, ChatRow)
    assert chat.record is not None, chat.fault
    counts = NotRead()
    outcome = normalize(chat.record, chat.columns, chat.columns_read, counts)
    counts.end_row("a:1", True)
    assert outcome == Conversation(messages, None)
    assert sorted(counts.counts) == not_read


def test_a_pair_that_says_two_things_is_none_and_messages_as_json_text_are_no_turns():
    assert not has_turns([{"instruction": "a", "input": "b", "output": "c"}])
    assert not has_turns(["User: a", '{"role": "user", "content": "a"}'])
    assert has_turns(["a", '{"x": 1}'])
    assert has_turns([{"instruction": "", "input": "b", "output": "c"}])


def test_texts_under_data_are_turns_only_where_a_row_has_nothing_else():
    assert suggest_read({"id": "0", "data": ["Hi", "Hello"]}).format == "sharegpt"
    assert suggest_read({"id": "0", "data": ["red", "blue"], "topic": "colours"}) is None
