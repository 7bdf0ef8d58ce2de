"""Conversations: every accepted form comes to one; the verdicts on whole rows stand in test_fixtures.py."""

import json

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sft.conversation import Conversation, Rejection, normalize
from sft.filters.structure import check_structure
from sft.hashing import value_digest

USER = {"role": "user", "content": "What is the weather in Paris?"}
ANSWER = {"role": "assistant", "content": "Mild."}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def call(name="get_weather", arguments=None, **more):
    return {
        "type": "function",
        "function": {"name": name, "arguments": arguments or {"city": "Paris"}},
        **more,
    }


def calling(*calls, content=""):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def kept(record):
    outcome = normalize(record)
    assert isinstance(outcome, Conversation), outcome
    return outcome


FORMS = [  # (why it exists, the message as it comes, what it becomes)
    (
        "null content with a call",
        {"role": "assistant", "content": None, "tool_calls": [call()]},
        calling(call()),
    ),
    ("no content at all", {"role": "assistant", "tool_calls": [call()]}, calling(call())),
    ("arguments as JSON text", calling(call(arguments='{"city": "Paris"}')), calling(call())),
    ("a bare call", calling({"name": "get_weather", "arguments": {"city": "Paris"}}), calling(call())),
    (
        "the older function_call",
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        },
        calling(call()),
    ),
    (
        "the developer role",
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be brief."},
    ),
    (
        "text parts",
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "user", "content": "ab"},
    ),
    (
        "inline reasoning",
        {"role": "assistant", "content": "<think>\nCount.\n</think>\n\nTwo."},
        {"role": "assistant", "content": "Two.", "reasoning_content": "Count."},
    ),
    (
        "an empty inline reasoning",
        {"role": "assistant", "content": "<think></think>Two."},
        {"role": "assistant", "content": "Two."},
    ),
    (
        "blank reasoning",
        {"role": "assistant", "content": "Two.", "reasoning_content": " \n"},
        {"role": "assistant", "content": "Two."},
    ),
    (
        "reasoning under its other name",
        {"role": "assistant", "content": "Two.", "reasoning": "Count."},
        {"role": "assistant", "content": "Two.", "reasoning_content": "Count."},
    ),
    ("an unknown key", {"role": "user", "content": "a", "name": "Ann"}, {"role": "user", "content": "a"}),
]


@pytest.mark.parametrize(("message", "normal"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_an_accepted_form_becomes_the_normal_one(message, normal):
    assert kept({"messages": [message]}).messages == [normal]
    assert kept({"messages": [normal]}).messages == [normal], "normalizing twice changes nothing"


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], json.dumps([TOOL])], ids=["openai", "bare", "text"])
def test_tools_in_any_form_become_the_openai_list(tools):
    assert kept({"messages": [USER], "tools": tools}).tools == [TOOL]


@pytest.mark.parametrize(
    ("more", "kept_as"),
    [
        ({"loss": True}, {}),
        ({"loss": False}, {"loss": False}),
        ({"weight": 0}, {"loss": False}),
        ({"weight": 1}, {}),
        ({"loss": False, "weight": 0}, {"loss": False}),
        ({"loss": None, "weight": None}, {}),
    ],
)
def test_only_an_answer_that_is_not_trained_says_so(more, kept_as):
    assert kept({"messages": [USER, {**ANSWER, **more}]}).messages == [USER, {**ANSWER, **kept_as}]
    assert kept({"messages": [{**USER, **more}, ANSWER]}).messages == [USER, ANSWER]


@pytest.mark.parametrize(
    "more", [{"loss": "no"}, {"loss": 0}, {"weight": True}, {"weight": 2}, {"loss": True, "weight": 0}]
)
def test_a_loss_that_is_none_is_refused_whoever_has_it(more):
    for message in (USER, ANSWER):
        outcome = normalize({"messages": [{**message, **more}]})
        assert isinstance(outcome, Rejection)
        assert outcome.reason == "malformed-row"


def test_the_id_depends_on_content_and_not_on_form_or_order_of_keys():
    one = kept({"messages": [USER, calling(call(arguments='{"city": "Paris", "days": 1}'))], "tools": [TOOL]})
    two = kept(
        {
            "tools": json.dumps([TOOL]),
            "messages": [USER, calling(call(arguments={"days": 1, "city": "Paris"}))],
        }
    )
    assert one.id == two.id
    assert len(one.id) == 32
    assert one.id != kept({"messages": [USER, ANSWER], "tools": [TOOL]}).id


TEXTS = st.text(max_size=6) | st.lists(
    st.sampled_from(["<think>", "</think>", " ", "\n", "a", "b", "<think></think>"]), max_size=6
).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = JSON | st.dictionaries(st.text(max_size=4), JSON, max_size=2).map(json.dumps)
CALLS = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": st.sampled_from(["get_weather", "f", ""]), "arguments": ARGUMENTS})},
    optional={"id": st.text(max_size=3) | st.integers() | JSON},
)
PARTS = st.lists(TEXTS | st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": TEXTS}), max_size=3)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "assistant", "tool", "function"])},
    optional={
        "content": st.none() | TEXTS | PARTS,
        "reasoning_content": TEXTS,
        "reasoning": TEXTS | JSON,
        "refusal": st.none() | TEXTS,
        "tool_calls": st.none() | st.lists(CALLS, max_size=2) | JSON,
        "function_call": st.none() | CALLS,
        "tool_call_id": st.text(max_size=3) | JSON,
        "loss": st.none() | st.booleans() | JSON,
        "weight": st.none() | st.sampled_from([0, 1]) | JSON,
    },
)
TOOLS = (
    st.none()
    | st.just([TOOL])
    | st.just(json.dumps([TOOL]))
    | st.lists(st.dictionaries(TEXTS, JSON), max_size=2)
    | JSON
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"messages": st.lists(MESSAGES | JSON, max_size=4) | JSON, "tools": TOOLS}))
def test_no_record_crashes_and_normalizing_is_idempotent(record):
    outcome = normalize(record)
    if isinstance(outcome, Rejection):
        assert outcome.reason
        assert outcome.evidence
        return
    event("normalized")
    check_structure(outcome, 1000)
    assert normalize({"messages": outcome.messages, "tools": outcome.tools}) == outcome


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=4))
def test_normal_form_is_what_it_says(messages):
    outcome = normalize({"messages": messages})
    if isinstance(outcome, Rejection):
        return
    for message in outcome.messages:
        assert message["role"] in {"system", "user", "assistant", "tool"}
        assert isinstance(message["content"], str)
        assert message.get("loss", False) is False
        assert message.keys() <= {"role", "content"} | OPTIONAL[message["role"]]
        assert message.get("reasoning_content", "x").strip() == message.get("reasoning_content", "x") != ""
        for call in message.get("tool_calls", [{"function": {"arguments": {}}}]):
            assert isinstance(call["function"]["arguments"], dict)


OPTIONAL = {
    "system": set(),
    "user": set(),
    "assistant": {"reasoning_content", "tool_calls", "loss"},
    "tool": {"tool_call_id"},
}


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
