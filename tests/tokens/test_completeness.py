"""Completeness: text that a rendered sample lacks is named."""

import pytest

from sft.tokens.completeness import missing_context, missing_in_tool, missing_in_turn

CALL = {"function": {"name": "f", "arguments": {}}}
TOOL = {"function": {"name": "f", "description": "Does.", "parameters": {"properties": {"x": {}}}}}


@pytest.mark.parametrize(
    ("message", "turn", "missing"),
    [
        ({"content": " a "}, "a", ""),
        ({"content": "a"}, "b", "content"),
        ({"content": "", "reasoning_content": "r"}, "a", "reasoning_content"),
        ({"content": "", "tool_calls": [CALL, CALL]}, "a", "tool_calls[0]"),
        ({"content": "a", "tool_calls": [CALL]}, "a f()", ""),
    ],
)
def test_a_turn_has_its_reasoning_its_text_and_its_calls(message, turn, missing):
    assert missing_in_turn(message, turn) == missing


MESSAGES = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two", "tool_calls": [CALL], "reasoning_content": "may be left out"},
    {"role": "tool", "content": 'th"ree'},
    {"role": "assistant", "content": "four"},
]


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ('one two f th"ree four', ""),
        (r'one two f "th\"ree" four', ""),  # as JSON
        ('th"ree one two f four', ""),  # moved
        ("one two f four", "messages[2].content"),
        ('one f th"ree four', "messages[1].content"),
        ('one two th"ree', "messages[1].tool_calls[0]"),
    ],
)
def test_what_stands_before_a_trained_turn_is_in_the_text(text, missing):
    assert missing_context(MESSAGES, None, text, [3]) == missing


def test_a_tool_is_in_the_text_with_its_description_and_parameters():
    assert missing_context([], [TOOL], "f", []) == ""
    assert missing_context([], [TOOL], "a", []) == "tools: f"
    texts = ("f Does. x", "a Does. x", "f x", "f Does.")
    assert [missing_in_tool(TOOL, text) for text in texts] == ["", "name", "description", "parameters"]
