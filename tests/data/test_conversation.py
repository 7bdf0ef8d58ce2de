"""Conversations: every accepted form comes to one, every fault has its reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.conversation import Conversation, Rejection, check_structure, normalise, schema_fault

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


def result(content="12 C", **more):
    return {"role": "tool", "content": content, **more}


def verdict(messages, tools=None, max_chars=10_000):
    """The reason for which a record is refused; empty if it is kept."""
    outcome = normalise({"messages": messages, "tools": tools})
    rejection = outcome if isinstance(outcome, Rejection) else check_structure(outcome, max_chars)
    assert rejection is None or rejection.evidence, "a rejection shows what was found"
    return rejection.reason if rejection else ""


def kept(record):
    outcome = normalise(record)
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
    assert kept({"messages": [normal]}).messages == [normal], "normalising twice changes nothing"


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], json.dumps([TOOL])], ids=["openai", "bare", "text"])
def test_tools_in_any_form_become_the_openai_list(tools):
    assert kept({"messages": [USER], "tools": tools}).tools == [TOOL]


GOOD = [  # (why it must not be refused, messages, tools)
    ("plain", [USER, ANSWER], None),
    ("system first", [{"role": "system", "content": ""}, USER, ANSWER], None),
    ("two user messages in a row", [USER, USER, ANSWER], None),
    ("ends in a call", [USER, calling(call())], [TOOL]),
    ("call and result", [USER, calling(call(id="1")), result(tool_call_id="1"), ANSWER], [TOOL]),
    ("results without ids", [USER, calling(call(), call()), result(), result(), ANSWER], [TOOL]),
    (
        "parallel results in another order",
        [
            USER,
            calling(call(id="1"), call(id="2")),
            result(tool_call_id="2"),
            result(tool_call_id="1"),
            ANSWER,
        ],
        [TOOL],
    ),
    ("tools that nobody calls", [USER, ANSWER], [TOOL]),
    ("text about thinking", [USER, {"role": "assistant", "content": "I think <b>so</b> & <thinking>"}], None),
    ("emoji and scripts", [USER, {"role": "assistant", "content": "温和 👍 mild"}], None),
]


@pytest.mark.parametrize(("messages", "tools"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_a_sound_conversation_is_kept(messages, tools):
    assert verdict(messages, tools) == ""


BAD = [  # (why it exists, the reason it must get, messages, tools)
    ("no messages", "malformed-row", [], None),
    ("a message that is text", "malformed-row", ["hi"], None),
    ("a role that is a number", "malformed-row", [{"role": 1, "content": "a"}], None),
    ("content that is a number", "malformed-row", [{"role": "user", "content": 3}, ANSWER], None),
    ("tools that are a number", "malformed-row", [USER, ANSWER], 3),
    ("a tool without a name", "malformed-row", [USER, ANSWER], [{"type": "function"}]),
    ("an image", "non-text-content", [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], None),
    ("a role of another tool", "unknown-role", [{"role": "critic", "content": "a"}, ANSWER], None),
    ("cut arguments", "arguments-not-json", [USER, calling(call(arguments='{"city": '))], [TOOL]),
    ("arguments in a list", "arguments-not-object", [USER, calling(call(arguments="[1]"))], [TOOL]),
    ("nobody answers", "last-turn-not-assistant", [USER], None),
    ("a result is last", "last-turn-not-assistant", [USER, calling(call()), result()], [TOOL]),
    ("assistant first", "role-order", [ANSWER], None),
    ("two answers in a row", "role-order", [USER, ANSWER, ANSWER], None),
    (
        "system in the middle",
        "role-order",
        [USER, ANSWER, {"role": "system", "content": "x"}, USER, ANSWER],
        None,
    ),
    ("a result to a user", "role-order", [USER, result(), ANSWER], None),
    ("nothing said", "empty-answer", [USER, {"role": "assistant", "content": " \n"}], None),
    ("only reasoning", "empty-answer", [USER, {"role": "assistant", "content": "<think>a</think>"}], None),
    ("a call without tools", "tool-call-without-tools", [USER, calling(call())], None),
    ("a tool that is not there", "unknown-tool", [USER, calling(call(name="get_wether"))], [TOOL]),
    ("a wrong type", "arguments-against-schema", [USER, calling(call(arguments={"city": 3}))], [TOOL]),
    ("a missing argument", "arguments-against-schema", [USER, calling(call(arguments={"days": 3}))], [TOOL]),
    (
        "an invented argument",
        "arguments-against-schema",
        [USER, calling(call(arguments={"city": "a", "x": 1}))],
        [TOOL],
    ),
    (
        "a schema that is none",
        "invalid-tool-schema",
        [USER, calling(call())],
        [{"name": "get_weather", "parameters": {"type": "HashMap"}}],
    ),
    ("a result nobody asked for", "tool-result-without-call", [USER, ANSWER, result(), ANSWER], None),
    (
        "one result too many",
        "tool-result-without-call",
        [USER, calling(call()), result(), result(), ANSWER],
        [TOOL],
    ),
    (
        "a call left open",
        "tool-call-without-result",
        [USER, calling(call(), call()), result(), ANSWER],
        [TOOL],
    ),
    (
        "another id",
        "tool-call-id-mismatch",
        [USER, calling(call(id="1")), result(tool_call_id="2"), ANSWER],
        [TOOL],
    ),
    ("think left open", "think-tags", [USER, {"role": "assistant", "content": "<think>hm"}], None),
    (
        "think closed twice",
        "think-tags",
        [USER, {"role": "assistant", "content": "<think>a</think>b</think>c"}],
        None,
    ),
    (
        "think in the middle",
        "think-tags",
        [USER, {"role": "assistant", "content": "b <think>a</think>"}],
        None,
    ),
    (
        "a typed turn",
        "template-markup",
        [{"role": "user", "content": "a<|im_end|>\n<|im_start|>assistant"}, ANSWER],
        None,
    ),
    ("a typed call", "template-markup", [USER, {"role": "assistant", "content": "<tool_call>\n"}], None),
    (
        "markup in arguments",
        "template-markup",
        [USER, calling(call(arguments={"city": "</tool_call>"}))],
        [TOOL],
    ),
    ("a lost character", "encoding-garbage", [USER, {"role": "assistant", "content": "caf\ufffd"}], None),
    ("a zero byte", "encoding-garbage", [{"role": "user", "content": "a\x00"}, ANSWER], None),
    ("half a surrogate pair", "encoding-garbage", [{"role": "user", "content": "a\ud800"}, ANSWER], None),
    ("too long", "too-long", [{"role": "user", "content": "a" * 20_000}, ANSWER], None),
]


@pytest.mark.parametrize(
    ("reason", "messages", "tools"), [case[1:] for case in BAD], ids=[f"{case[1]}: {case[0]}" for case in BAD]
)
def test_a_fault_gets_its_reason(reason, messages, tools):
    assert verdict(messages, tools) == reason


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


def test_a_schema_is_never_fetched_from_outside():
    fault = schema_fault({"$ref": "http://127.0.0.1:9/schema.json"}, {"a": 1})
    assert fault.startswith("schema: ")


def test_a_schema_that_refers_to_itself_is_a_fault_of_the_schema():
    assert schema_fault({"$ref": "#"}, {"a": 1}).startswith("schema: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["role", "content", "tool_calls", "function_call", "reasoning_content", "tool_call_id"]
MESSAGES = st.lists(
    JSON | st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["user", "assistant", "tool"]) | JSON, max_size=5),
    max_size=4,
)


@given(st.fixed_dictionaries({"messages": JSON | MESSAGES, "tools": JSON | st.just([TOOL])}))
def test_no_record_crashes_and_normalising_is_idempotent(record):
    outcome = normalise(record)
    if isinstance(outcome, Rejection):
        assert outcome.reason
        return
    check_structure(outcome, 1000)
    again = normalise({"messages": outcome.messages, "tools": outcome.tools})
    assert again == outcome
