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
    {"mapping": {"a": {"message": None, "parent": None}}, "current_node": "a"},
    {"chat_messages": [{"sender": "human", "text": "a"}]},
    {"schema_version": "ATIF-v1.2", "steps": [{"source": "user", "message": "a"}]},
    {"segments": [{"label": False, "text": "<s>a"}, {"label": True, "text": "b</s>"}]},
    {"sessionId": "1", "uuid": "2", "parentUuid": None, "type": "user", "message": {"role": "user", "content": "a"}},
    {"timestamp": "t", "type": "response_item", "payload": {"type": "message", "role": "user", "content": []}},
    {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["c", "d"]},
    {"conversation_a": [USER, ANSWER], "conversation_b": [USER, ANSWER], "winner": "model_b"},
    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [USER]}},
    {"custom_id": "1", "response": {"status_code": 200, "body": {"choices": [{"message": ANSWER}]}}},
    {"chat_history": [{"role": "USER", "message": "a"}], "message": "b", "text": "c"},
    {"id": "1", "run_type": "llm", "inputs": {"messages": [[USER]]}, "outputs": {}},
    {"id": 0, "source": "agent", "action": "run", "args": {"command": "ls"}},
    {"id": 1, "source": "agent", "observation": "run", "content": "a.py"},
    {"instance_id": "1", "history": [{"id": 0, "source": "user", "action": "message"}]},
    {"input_ids": [1, 2], "labels": [-100, 2]},
    {"question": "a", "choices": ["b", "c"], "answer": 0},
    {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "A"},
    {"question": "a", "opa": "b", "opb": "c", "cop": 0},
    {"goal": "a", "sol1": "b", "sol2": "c", "label": 1},
    {"question": "a", "distractor1": "b", "correct_answer": "c"},
    {"instruction": "a", "completions": [{"model": "m", "response": "b"}, {"model": "n", "response": "c"}]},
    {"prompt": "a", "responses": ["b", "c"]},
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
        {"text": "<|im_start|>user\na<|im_end|>"},
        {"text": "### Human: a### Assistant: b"},
        {"chat": "USER: a\n\nASSISTANT: b <|endoftext|>", "system": "SYSTEM: c"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    ],
    ids=str,
)
def test_text_of_a_chat_template_is_rejected_with_its_markup(row):
    assert other_shape(row).startswith("text with the markup of a chat template")


@pytest.mark.parametrize(
    "row",
    [
        {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "a"},
        {"attributes": {"llm.input_messages.0.message.role": "user"}},
    ],
    ids=str,
)
def test_a_flat_span_is_named(row):
    assert other_shape(row).startswith("a span of a trace")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b", "text": "### Instruction: a\n### Response: b"},
        {"text": "a"},
        {"segments": [{"start": 0}]},
        {"segments": "a"},
        {"messages": [USER, ANSWER]},
        {"question": "a", "function": [], "answer": "b"},
        {"question_id": 1, "turns": [USER, ANSWER]},
        {"messages": [USER, ANSWER], "timestamp": "t", "type": "x", "payload": {"a": 1}},
        {"conversations": [USER, ANSWER], "text": "<|im_start|>user\na<|im_end|>"},
        {"conversation": '[{"role": "user", "content": "a"}]', "prompt": "a", "responses": ["b", "c"]},
    ],
    ids=str,
)
def test_another_row_may_be_a_conversation(row):
    assert other_shape(row) == ""
