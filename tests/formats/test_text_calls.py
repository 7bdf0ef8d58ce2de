"""Calls as Python writes them: read if the whole text is calls of known tools, left alone otherwise."""

import pytest

from sft.conversation import Conversation, Rejection
from sft.formats.messages import normalize
from sft.formats.text_calls import split_bracket_calls

NAMES = {"f", "Market Trends API", "a.b"}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f()]", [("f", {})]),
        (" [f(a=1)]\n", [("f", {"a": 1})]),
        (
            '[f(a="x, (y)]", b=[1, {"c": \'d\'}]), a.b(x=True, y=null)]',
            [("f", {"a": "x, (y)]", "b": [1, {"c": "d"}]}), ("a.b", {"x": True, "y": None})],
        ),
        (
            "[f(a=\"x, (y)]\", b=[1, {'c': 'd'}]), a.b(x=True)]",
            [("f", {"a": "x, (y)]", "b": [1, {"c": "d"}]}), ("a.b", {"x": True})],
        ),
        (
            '[Market Trends API(trend_type="MARKET", country=None)]',
            [("Market Trends API", {"trend_type": "MARKET", "country": None})],
        ),
        ("[f(a=-1.5), f(a=2)]", [("f", {"a": -1.5}), ("f", {"a": 2})]),
    ],
)
def test_calls_are_read_exactly(text, calls):
    found = [(call["name"], call["arguments"]) for call in split_bracket_calls(text, NAMES)]
    assert found == calls


@pytest.mark.parametrize(
    "text",
    [
        "[g(a=1)]",
        "[f(1)]",
        "[f(a=1)",
        "f(a=1)",
        "[f(a=1) f(a=2)]",
        "[f(a=1,)]",
        "[f(a=1, a=2)]",
        "[f(a=x)]",
        "So: [f()]",
        "[f()] So.",
        "[]",
        "[f(a=)]",
        "[f(a=1 2)]",
        "[f(a='x' 'y')]",
        "[f(" + "a=[" * 50_000 + ")]",
        "[" + "f()," * 50_000 + ")]",
    ],
    ids=lambda text: text[:20],
)
def test_other_text_is_left_alone(text):
    assert split_bracket_calls(text, NAMES) == []


def test_an_answer_of_nothing_but_calls_calls_the_tools_of_its_row():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "[f(a=1)]"}]
    record = {"messages": [*messages, {"role": "tool", "content": "2"}], "tools": [{"name": "f"}]}
    outcome = normalize(record)
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert outcome.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize("text", ["[f(1)]", "[f(a=1,)]", "[f(a='it's')]", "[f(a=1)]\n[f(a=2)]"])
def test_an_answer_of_calls_that_cannot_be_read_is_rejected(text):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    outcome = normalize({"messages": messages, "tools": [{"name": "f"}]})
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "call-as-text"


def test_a_call_in_json_without_arguments_stays_beside_one_with_them():
    content = '[{"name": "f", "arguments": {}}, {"name": "g"}]'
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    outcome = normalize({"messages": messages, "tools": [{"name": "f"}, {"name": "g"}]})
    assert isinstance(outcome, Conversation)
    assert [call["function"]["name"] for call in outcome.messages[1]["tool_calls"]] == ["f", "g"]
