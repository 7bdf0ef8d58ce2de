"""Forms: the same message as templates want it."""

import pytest

from sft.tokens.forms import INLINE, SPLICED, USUAL, Form, make_turns

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "ü<"}}}
TURN = {"role": "assistant", "content": "a<", "reasoning_content": "r<", "tool_calls": [CALL], "loss": True}


def shield(value):
    """Put a dot before each `<`."""
    if isinstance(value, str):
        return value.replace("<", ".<")
    if isinstance(value, dict):
        return {key: shield(item) for key, item in value.items()}
    return [shield(item) for item in value] if isinstance(value, list) else value


def shown(form):
    return make_turns([TURN], None, form, shield, ".").messages[0]


def test_the_usual_form_is_normal_form_shielded_and_without_loss():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "ü.<"}}}
    assert shown(USUAL) == {
        "role": "assistant",
        "content": "a.<",
        "reasoning_content": "r.<",
        "tool_calls": [call],
    }


def test_arguments_are_an_object_or_json_text():
    assert shown(Form("text"))["tool_calls"][0]["function"]["arguments"] == '{"x": "ü.<"}'
    assert TURN["tool_calls"][0]["function"]["arguments"] == {"x": "ü<"}, "the row is as it was"


@pytest.mark.parametrize("key", ["reasoning", "thinking"])
def test_reasoning_has_another_key(key):
    turn = shown(Form(reasoning=key))
    assert turn[key] == "r.<"
    assert "reasoning_content" not in turn


def test_reasoning_stands_inline_between_tags_that_are_structure():
    turn = shown(Form(reasoning=INLINE))
    assert turn["content"] == "<think>\nr.<\n</think>\n\na.<"
    assert "reasoning_content" not in turn


def test_spliced_reasoning_is_only_in_the_last_answer_and_its_tags_are_written_behind_the_template():
    turns = make_turns([TURN, TURN], None, Form(reasoning=SPLICED), shield, ".", "!")
    assert [message["content"] for message in turns.first(2, False)] == ["a.<", "!r.<!a.<"]
    assert [message["content"] for message in turns.first(2, True)] == ["a.<", "a.<"]
    assert not [message for message in turns.first(2, False) if "reasoning_content" in message]
    assert turns.with_tags("x!r!a") == "x<think>\nr\n</think>\n\na"
    assert (turns.with_tags("xr"), turns.with_tags("x!r")) == ("xr", "x!r")
    assert turns.first(0, False) == []
