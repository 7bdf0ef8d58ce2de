"""Tools, calls and results between tags: read where they are whole, left alone where they are not."""

import json

import pytest

from sft.conversation import Conversation
from sft.formats.messages import normalize
from sft.formats.not_read import NotRead
from sft.formats.text_calls import split_calls, split_results
from sft.formats.text_tools import split_tools

TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}
HERMES = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "You may call one or more functions.\n<tools>\n{tools}\n</tools>\nFor each call return a JSON object within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n{{'name': <name>}}\n</tool_call>"
)
QWEN = (
    "Be kind.\n\n# Tools\nSignatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\nAnswer in German."
)
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "CET"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "rest"),
    [(HERMES, "You are a function calling AI model."), (QWEN, "Be kind.\n\n# Tools\n\nAnswer in German.")],
    ids=["Hermes", "Qwen"],
)
@pytest.mark.parametrize(
    "listed",
    [
        json.dumps([TOOL]),
        json.dumps(TOOL),
        f"{json.dumps(TOOL)}\n{json.dumps(TOOL)}",
        str([TOOL]),
        f"{TOOL}\n{TOOL}",
        f"{TOOL},{TOOL}",
    ],
)
def test_tools_leave_the_system_text_with_what_says_how_to_call_them(text, rest, listed):
    turns = [{"role": "system", "content": text.format(tools=listed)}]
    not_read = NotRead()
    tools = split_tools(turns, not_read)
    assert tools is not None
    assert tools[0] == TOOL
    assert turns == [{"role": "system", "content": rest}]
    not_read.end_row("a:1", True)
    assert [count for count, _ in not_read.counts.values()] == [1]


@pytest.mark.parametrize(
    "text", ["", "Tools: <tools></tools>", "<tools>none</tools>", "<tools>[{cut</tools>", "<tools> {"]
)
def test_text_that_lists_no_tool_stays(text):
    turns = [{"role": "system", "content": text}]
    assert split_tools(turns, NotRead()) is None
    assert turns == [{"role": "system", "content": text}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, ("", 1)),
        ("<tool_call>\n{'arguments': {'zone': 'CET'}, 'name': 'now'}\n</tool_call>", ("", 1)),
        (f"I look.\n{CALL}\n{CALL}\n", ("I look.", 2)),
        (f"{CALL} It is late.", None),
        ("<tool_call>now()</tool_call>", None),
        ("<tool_call>{}</tool_call>", None),
        (f"Write </tool_call>. {CALL}", None),
        ("<tool_call><tool_call></tool_call>", None),
        ("No tag", None),
    ],
)
def test_calls_are_read_at_the_end_of_an_answer(text, expected):
    found = split_calls(text)
    assert (found and (found[0], len(found[1]))) == expected


def test_results_are_read_where_there_is_nothing_else():
    assert split_results("<tool_response>\n1\n</tool_response>\n<tool_response>2</tool_response>") == ["1", "2"]
    assert split_results("So: <tool_response>1</tool_response>") is None
    assert split_results("") is None


def test_long_runs_of_tags_and_spaces_take_no_time():
    for text in ("<tool_call>" * 50_000, CALL * 5_000 + "x", "<tools>" * 50_000 + "</tools>" * 50_000, " " * 200_000):
        split_calls(text)
        split_results(text)
        split_tools([{"role": "system", "content": text}], NotRead())


@pytest.mark.parametrize("speaker", ["tool", "user"])
def test_a_conversation_between_tags_is_the_one_without_them(speaker):
    messages = [
        {"role": "system", "content": HERMES.format(tools=json.dumps([TOOL]))},
        {"role": "user", "content": "How late is it?"},
        {"role": "assistant", "content": f"<think>\nI look.\n</think>\n{CALL}\n{CALL}"},
        {"role": speaker, "content": "<tool_response>\n9\n</tool_response>\n<tool_response>\n8\n</tool_response>"},
        {"role": "assistant", "content": "Nine."},
    ]
    outcome = normalize({"messages": messages})
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "now", "arguments": {"zone": "CET"}}}
    assert outcome.tools == [TOOL]
    assert outcome.messages == [
        {"role": "system", "content": "You are a function calling AI model."},
        messages[1],
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [call, call]},
        {"role": "tool", "content": "9"},
        {"role": "tool", "content": "8"},
        messages[4],
    ]


def test_tags_in_a_conversation_without_tools_are_text():
    messages = [{"role": "user", "content": "Show a call."}, {"role": "assistant", "content": CALL}]
    outcome = normalize({"messages": messages})
    assert isinstance(outcome, Conversation)
    assert outcome.messages == messages
