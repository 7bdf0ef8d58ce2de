"""Conversations: their hash, and what normal form is; tests/formats/test_messages.py has how rows come to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.conversation import Conversation, is_normal
from sft.hashing import value_digest

CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([USER, ANSWER], None, True),
        ([USER, {**ANSWER, "tool_calls": [CALL], "loss": False, "reasoning_content": "t"}], [CALL], True),
        ([{"role": "tool", "content": "a", "tool_call_id": "1"}], None, True),
        ([], None, False),
        ({}, None, False),
        (["a"], None, False),
        ([{"role": "human", "content": "a"}], None, False),
        ([{"role": "user", "content": None}], None, False),
        ([{**USER, "name": "a"}], None, False),
        ([{**ANSWER, "reasoning_content": ""}], None, False),
        ([{**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}], None, False),
        ([{**ANSWER, "tool_calls": [{"name": "f"}]}], None, False),
        ([USER], [{"name": "f"}], False),
    ],
)
def test_what_is_normal(messages, tools, expected):
    assert is_normal(messages, tools) is expected


@given(
    st.text(),
    st.text(st.characters(codec="utf-8")),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 5, True, -0.0, 1e16, 1e-7, 1 << 70, [{"b": 1.5, "a": "é"}], {"b": [1], "a": 2}]),
)
def test_the_id_is_a_digest_of_sorted_json_however_it_is_made(odd, text, tools, silent, value):
    messages = [
        {"role": "user", "content": text + odd},
        {"role": "assistant", "content": text, "reasoning_content": odd},
    ]
    if silent:
        messages[1]["loss"] = False
    if value is not None:
        messages[1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": {"x": value}}}]
    conversation = Conversation(messages, [{"type": "function", "function": {"name": text or "f"}}] if tools else None)
    whole = {"messages": conversation.messages, "tools": conversation.tools}
    assert conversation.id == value_digest(whole)[:32]
