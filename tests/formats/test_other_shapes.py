"""Rows that are no conversation each: rejected by name, with what to do, in every message."""

import pytest

from sft.cli import InputError
from sft.formats.chat_forms import FieldCounts, convert_chats
from sft.formats.detect import detect
from sft.formats.other_shapes import SHAPES, other_shape
from sft.formats.raw_files import Row
from sft.params.data import Read
from tests.support.raw_rows import write_lines

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
OTHERS = [
    {"message_id": "1", "parent_id": None, "text": "a", "role": "prompter", "lang": "en"},
    {"message_tree_id": "1", "prompt": {"text": "a", "role": "prompter", "replies": []}},
    {"segments": [{"label": False, "text": "<s>a"}, {"label": True, "text": "b</s>"}]},
    {"sessionId": "1", "uuid": "2", "parentUuid": None, "type": "user", "message": {"role": "user", "content": "a"}},
    {"timestamp": "t", "type": "response_item", "payload": {"type": "message", "role": "user", "content": []}},
    {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["c", "d"]},
    {"id": "1", "question": [[USER]], "function": [{"name": "f"}], "ground_truth": [{"f": {}}]},
]


@pytest.mark.parametrize(("row", "shape"), zip(OTHERS, SHAPES, strict=True), ids=range(len(OTHERS)))
def test_a_row_that_is_no_conversation_is_rejected_by_name(tmp_path, row, shape):
    text = other_shape(row)
    assert text == shape.text
    (rejected,) = convert_chats([Row("a:1", row)], "openai", {}, {}, counts := FieldCounts())
    assert (rejected.record, rejected.fault) == (None, text)
    with pytest.raises(InputError) as error:
        counts.check("openai", {})
    assert text in str(error.value)
    write_lines(tmp_path, "a.jsonl", row)
    with pytest.raises(InputError) as error:
        detect(tmp_path, Read(format="auto"))
    assert f"1 are {text}" in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {"segments": [{"start": 0}]},
        {"segments": "a"},
        {"messages": [USER, ANSWER]},
        {"question": "a", "function": [], "answer": "b"},
        {"question_id": 1, "turns": [USER, ANSWER]},
        {"messages": [USER, ANSWER], "timestamp": "t", "type": "x", "payload": {"a": 1}},
    ],
    ids=str,
)
def test_another_row_may_be_a_conversation(row):
    assert other_shape(row) == ""
