"""Answers: a thought, then text, then calls, in another order the row is rejected; and each of the three."""

import pytest

from sft.formats.answers import (
    assistant_turns,
    calls_of_part,
    give_reasoning,
    read_call,
    reasoning_of,
    with_think_tags,
)
from sft.formats.flags import UnfitRowError
from sft.formats.not_read import NotRead

TEXT, CALL = {"type": "text", "text": "a"}, {"type": "tool_use", "name": "f", "input": {}}


def read(*parts):
    message = {"role": "assistant", "content": list(parts)}
    return assistant_turns(message, message["content"], NotRead())


def test_parts_in_order_are_one_turn():
    (turn,) = read({"type": "thinking", "thinking": "t"}, TEXT, CALL)
    assert (turn["reasoning_content"], turn["content"], len(turn["tool_calls"])) == ("t", "a", 1)


@pytest.mark.parametrize("parts", [(CALL, TEXT), (TEXT, {"type": "thinking", "thinking": "t"})])
def test_parts_in_another_order_reject_the_row(parts):
    with pytest.raises(UnfitRowError, match="after"):
        read(*parts)


OPENAI_CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "f", "arguments": {}},
        {"text": '{"name": "f", "arguments": {}}'},
        {"text": [{"name": "f"}]},
        {"text": {"function": {"name": "f", "arguments": "{}"}}},
    ],
)
def test_a_part_with_a_call_in_its_keys_or_its_value_is_the_call(keys):
    assert calls_of_part(keys, NotRead()) == [OPENAI_CALL]


def test_a_call_without_a_name_rejects_the_row():
    with pytest.raises(UnfitRowError, match="a function with a name"):
        read_call({"arguments": {}}, NotRead())


def test_two_keys_with_other_reasoning_reject_the_row():
    assert reasoning_of({"reasoning": " a ", "thinking": "a"}, [], NotRead()) == "a"
    with pytest.raises(UnfitRowError, match="differ"):
        reasoning_of({"reasoning": "a", "thinking": "b"}, [], NotRead())


@pytest.mark.parametrize("text", ["<thinking>a</thinking>b", "[THINK]a[/THINK]b", "<think>a</think>b"])
def test_a_thought_between_other_tags_is_one_between_ours(text):
    assert with_think_tags(text) == "<think>a</think>b"


def test_inline_reasoning_leaves_the_text():
    turn = {"role": "assistant", "content": "<think>a</think>\n\nb"}
    give_reasoning(turn, "")
    assert turn == {"role": "assistant", "content": "b", "reasoning_content": "a"}
