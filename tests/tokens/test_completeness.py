"""Completeness: text that a rendered sample lacks is named."""

import json

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


ARGUMENTS = {"city": ' Zürich "a"\n<|x|>', "days": [2, -0.5], "why": {"exact": True, "more": None}}
WRITTEN = json.dumps(ARGUMENTS, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "has"),
    [
        (WRITTEN, True),
        (json.dumps(ARGUMENTS, indent=1), True),  # Z\u00fcrich
        (json.dumps(WRITTEN), True),  # JSON text in JSON
        (json.dumps(WRITTEN, ensure_ascii=False), True),
        (str(ARGUMENTS), True),
        ('city=Zürich "a"\n<|x|> days=[2,-0.5] why=exact:True;more:None', True),
        (WRITTEN.replace("<|x|>", "<!|x|>"), True),  # the guard
        (WRITTEN.replace("city", ""), False),
        (WRITTEN.replace("exact", ""), False),
        (WRITTEN.replace("Zürich", ""), False),
        (WRITTEN.replace("[2,", "[12, "), False),
        (WRITTEN.replace("-0.5", ""), False),
        (WRITTEN.replace("true", ""), False),
        (WRITTEN.replace("null", ""), False),
        ("", False),
    ],
)
def test_a_call_has_the_keys_and_values_of_its_arguments_in_any_notation(text, has):
    arguments = ARGUMENTS | {"city": ARGUMENTS["city"].replace("<|", "<!|")}
    call = {"function": {"name": "f_2", "arguments": arguments}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    place = "" if has else "tool_calls[0].function.arguments"
    assert missing_in_turn(message, "f_2 " + text, "!") == place
    assert missing_context([message], None, "f_2 " + text, [], "!") == (place and f"messages[0].{place}")


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
