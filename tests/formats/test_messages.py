"""Messages: every published form comes to one; the verdicts on whole rows are in test_labelled_conversations.py."""

import itertools
import json

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sft.conversation import Conversation, Rejection, is_normal
from sft.filters.structure import check_structure
from sft.formats.messages import normalize
from sft.formats.not_read import NotRead
from sft.formats.spellings import MESSAGE_KEYS, SPEAKER_KEYS, TRAIN_FLAGS, role_of

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


FLAGS = [(name, means_trained) for name, means_trained in TRAIN_FLAGS.items()]


@pytest.mark.parametrize(("name", "means_trained"), FLAGS)
@pytest.mark.parametrize("value", [True, False, 1, 0, 1.0, 0.0, "true", "False", "1", " 0 "])
def test_a_flag_in_any_spelling_says_whether_an_answer_is_trained(name, means_trained, value):
    is_true = value in (True, "true", "1")
    (_, answer) = kept({"messages": [USER, {**ANSWER, name: value}]}).messages
    assert answer == (ANSWER if is_true == means_trained else {**ANSWER, "loss": False})


@pytest.mark.parametrize(
    "more",
    [
        {"loss": "no"},
        {"weight": 0.5},
        {"weight": 2},
        {"loss": True, "weight": 0},
        {"masked": True, "train": True},
        {"mask": 1},
        {"loss": [1]},
    ],
    ids=str,
)
def test_a_flag_that_is_unclear_rejects_the_row_and_is_named(more):
    for message in (USER, ANSWER):
        outcome = normalize({"messages": [{**message, **more}]})
        assert isinstance(outcome, Rejection)
        assert outcome.reason == "unclear-train-flag"
        assert all(name in outcome.evidence for name in more)


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


@settings(max_examples=300)
@given(st.fixed_dictionaries({"messages": st.lists(MESSAGES | JSON, max_size=4) | JSON, "tools": TOOLS}))
def test_no_record_crashes_and_normalizing_is_idempotent(record):
    outcome = normalize(record)
    if isinstance(outcome, Rejection):
        assert outcome.reason
        assert outcome.evidence
        return
    event("normalized")
    check_structure(outcome)
    assert normalize({"messages": outcome.messages, "tools": outcome.tools}) == outcome


@settings(max_examples=200)
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


# Conversations in the forms of published data sets, and what they become.

PARIS, MILD = {"role": "user", "content": "Paris?"}, {"role": "assistant", "content": "Mild."}
CALLING, RESULT = calling(call()), {"role": "tool", "content": "12 C"}
ARGUMENTS_TEXT = '{"city": "Paris"}'
CALL_TEXT = f'{{"name": "get_weather", "arguments": {ARGUMENTS_TEXT}}}'
THINKING = {**CALLING, "reasoning_content": "I look."}

PUBLISHED = {
    "ShareGPT": (
        [{"from": "human", "value": "Paris?"}, {"from": "gpt", "value": "Mild."}],
        [PARIS, MILD],
    ),
    "NeMo": (
        [{"from": "User", "value": "Paris?", "label": None}, {"from": "Assistant", "value": "Mild.", "label": None}],
        [PARIS, MILD],
    ),
    "other speakers": (
        [{"role": "human", "content": "Paris?"}, {"role": "ai", "text": "Mild."}],
        [PARIS, MILD],
    ),
    "Cohere": ([{"role": "User", "content": "Paris?"}, {"role": "Chatbot", "content": "Mild."}], [PARIS, MILD]),
    "a tool without a result": (
        [PARIS, CALLING, {"role": "tool", "name": "get_weather", "content": None}, MILD],
        [PARIS, CALLING, {"role": "tool", "content": ""}, MILD],
    ),
    "ms-swift": (
        [PARIS, {"role": "tool_call", "content": CALL_TEXT}, {"role": "tool_response", "content": "12 C"}, MILD],
        [PARIS, CALLING, RESULT, MILD],
    ),
    "Llama": (
        [PARIS, {**CALLING, "content": ""}, {"role": "ipython", "content": "12 C"}, MILD],
        [PARIS, CALLING, RESULT, MILD],
    ),
    "calls in a row": (
        [
            PARIS,
            {"from": "function_call", "value": CALL_TEXT},
            {"from": "function_call", "value": CALL_TEXT},
            {"from": "observation", "value": "12 C"},
            {"from": "observation", "value": "12 C"},
            MILD,
        ],
        [PARIS, calling(call(), call()), RESULT, RESULT, MILD],
    ),
    "a thought before a call": (
        [PARIS, {"from": "function_call", "value": f"<think>\nI look.\n</think>\n\n{CALL_TEXT}"}, RESULT, MILD],
        [PARIS, THINKING, RESULT, MILD],
    ),
    "a text and its call in two messages": (
        [PARIS, {"role": "bot", "content": "I look."}, {"from": "function_call", "value": CALL_TEXT}, RESULT, MILD],
        [PARIS, calling(call(), content="I look."), RESULT, MILD],
    ),
    "Responses": (
        [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Paris?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I look."}]},
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "1",
                "name": "get_weather",
                "arguments": ARGUMENTS_TEXT,
                "status": "completed",
            },
            {"type": "function_call_output", "call_id": "1", "output": "12 C"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Mild.", "annotations": []}],
            },
        ],
        [
            PARIS,
            {**THINKING, "tool_calls": [call(id="1")]},
            {**RESULT, "tool_call_id": "1"},
            MILD,
        ],
    ),
    "Anthropic": (
        [
            {"role": "user", "content": [{"type": "text", "text": "Paris?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I look.", "signature": "x"},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": "1", "name": "get_weather", "input": {"city": "Paris"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "12 C"}]}],
            },
            MILD,
        ],
        [
            PARIS,
            {**THINKING, "content": "One moment.", "tool_calls": [call(id="1")]},
            {**RESULT, "tool_call_id": "1"},
            MILD,
        ],
    ),
    "messages, calls and arguments as JSON text": (
        [
            json.dumps(PARIS),
            {"role": "assistant", "content": None, "tool_calls": f"[{CALL_TEXT}]"},
            {"role": "tool", "content": {"temperature": 12, "unit": "°C"}},
            {"role": "assistant", "content": "Mild.", "function_call": None},
        ],
        [PARIS, CALLING, {"role": "tool", "content": '{"temperature": 12, "unit": "°C"}'}, MILD],
    ),
    "results that are lists and numbers": (
        [PARIS, calling(call(), call()), {**RESULT, "content": [{"t": 1}]}, {**RESULT, "content": 12}, MILD],
        [PARIS, calling(call(), call()), {**RESULT, "content": '[{"t": 1}]'}, {**RESULT, "content": "12"}, MILD],
    ),
    "text as value": (
        [
            {**PARIS, "content": [{"type": "text", "value": "Paris?"}]},
            {**MILD, "content": {"type": "text", "text": "Mild."}},
        ],
        [PARIS, MILD],
    ),
    "LLaMA-Factory v1": (
        [
            {**PARIS, "content": [{"type": "text", "value": "Paris?"}]},
            {
                "role": "assistant",
                "content": [{"type": "reasoning", "value": "I look."}, {"type": "tool_call", "value": CALL_TEXT}],
            },
            {"role": "tool", "content": [{"type": "tool_response", "value": "12 C"}]},
            {**MILD, "content": [{"type": "text", "value": "Mild."}]},
        ],
        [PARIS, THINKING, RESULT, MILD],
    ),
    "several calls in a part": (
        [
            PARIS,
            {"role": "assistant", "content": [{"type": "tool_calls", "value": f"[{CALL_TEXT}, {CALL_TEXT}]"}]},
            {
                "role": "tool",
                "content": [{"type": "tool_result", "text": "12 C"}, {"type": "tool_result", "value": "12 C"}],
            },
            MILD,
        ],
        [PARIS, calling(call(), call()), RESULT, RESULT, MILD],
    ),
    "a call in a part under its type": (
        [PARIS, {"role": "assistant", "content": [{"type": "tool_call", "tool_call": call(id="a")}]}, RESULT, MILD],
        [PARIS, calling(call(id="a")), RESULT, MILD],
    ),
    "Gemini": (
        [{"role": "user", "parts": [{"text": "Paris?"}]}, {"role": "model", "parts": [{"text": "Mild."}]}],
        [PARIS, MILD],
    ),
    "a thought that the template opened": (
        [PARIS, {"role": "assistant", "content": "April.</think>\n\nMild."}],
        [PARIS, {**MILD, "reasoning_content": "April."}],
    ),
}
PUBLISHED |= {
    f"reasoning as {name}": ([PARIS, {**MILD, name: value}], [PARIS, {**MILD, "reasoning_content": "April."}])
    for name, value in {
        "reasoning_content": "April.",
        "reasoning": "April.",
        "thinking": "April.",
        "thought": "April.",
        "reasoning_details": [{"type": "reasoning.text", "text": "April.", "signature": "x"}],
    }.items()
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_form_becomes_the_normal_one(name):
    messages, expected = PUBLISHED[name]
    outcome = kept({"messages": messages, "tools": [TOOL]})
    assert outcome.messages == expected
    assert is_normal(outcome.messages, outcome.tools)
    assert normalize({"messages": outcome.messages, "tools": outcome.tools}) == outcome


@pytest.mark.parametrize(
    ("messages", "reason", "named"),
    [
        ([PARIS, {**MILD, "reasoning": "a", "thinking": "b"}], "malformed-row", "reasoning and thinking differ"),
        ([PARIS, {**MILD, "text": "Cold."}], "malformed-row", "text"),
        ([PARIS, {"from": "function_call", "value": f"I look. {CALL_TEXT}"}], "malformed-row", "no text before it"),
        (
            [PARIS, CALLING, {"role": "tool", "tool_results": [{"content": "12 C"}]}, MILD],
            "unread-call",
            "tool_results",
        ),
        ([{"role": "human", "message": "Paris, please."}, MILD], "malformed-row", "message"),
        (
            [PARIS, {**MILD, "content": [{"type": "tool_use", "name": "f"}, "a"]}],
            "malformed-row",
            "after a call",
        ),
        ([PARIS, {"type": "reasoning", "encrypted_content": "x"}, MILD], "unreadable-reasoning", "encrypted_content"),
        ([PARIS, {"type": "reasoning", "summary": "a"}], "empty-answer", "reasoning item"),
        (
            [{**PARIS, "content": [{"type": "image_url", "image_url": "x"}]}, MILD],
            "non-text-content",
            "image_url",
        ),
        ([PARIS, MILD, {"role": "critic", "content": "a"}], "unknown-role", "critic"),
    ],
)
def test_a_message_that_cannot_be_read_exactly_rejects_the_row_and_says_why(messages, reason, named):
    outcome = normalize({"messages": messages, "tools": [TOOL]})
    assert isinstance(outcome, Rejection), outcome
    assert outcome.reason == reason
    assert named in outcome.evidence


def test_context_is_never_trained_whatever_its_flags_say():
    record = {"messages": [PARIS, {**MILD, "weight": 1}, PARIS, MILD], "num_context": 3}
    assert kept(record).messages == [PARIS, {**MILD, "loss": False}, PARIS, MILD]


def test_answers_of_which_one_is_trained_are_not_joined():
    messages = [PARIS, {**CALLING, "train": False}, CALLING]
    assert kept({"messages": messages, "tools": [TOOL]}).messages == [PARIS, {**CALLING, "loss": False}, CALLING]


@pytest.mark.parametrize(
    "more", [{"train": False}, {"masked": 1}, {"weight": 0}, {"mask": 1}, {"train_detail": [{"train": False}]}]
)
def test_a_part_that_is_not_to_be_trained_rejects_the_row(more):
    outcome = normalize({"messages": [USER, {**ANSWER, "content": [{"type": "text", "text": "Mild.", **more}]}]})
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, next(iter(more)) in outcome.evidence) == ("unclear-train-flag", True)


def test_the_spans_of_a_message_are_not_trained_apart():
    outcome = normalize({"messages": [USER, {**ANSWER, "train_detail": [{"begin_offset": 0, "train": False}]}]})
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "unclear-train-flag"


def test_a_thought_of_gemini_is_no_part_of_the_answer():
    parts = [{"text": "It is May.", "thought": True}, {"text": "Mild.", "thought": False}]
    outcome = normalize({"messages": [USER, {"role": "model", "parts": parts}]})
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1] == {**ANSWER, "reasoning_content": "It is May."}


@pytest.mark.parametrize(
    "more",
    [{"refusal": "No."}, {"tool_calls": [call()], "function_call": {"name": "other", "arguments": "{}"}}],
)
def test_a_key_that_another_one_replaces_is_counted(more):
    not_read = NotRead()
    normalize({"messages": [USER, {**ANSWER, **more}], "tools": [TOOL]}, not_read=not_read)
    not_read.end_row("a:1", True)
    assert set(not_read.counts) == {f"messages[].{list(more)[-1]}"}


@pytest.mark.parametrize(
    "flag",
    [
        {"trainOnTurn": False},
        {"ignore": True},
        {"metadata": {"train": False}},
        {"meta": '{"Loss-Mask": 0}'},
    ],
    ids=str,
)
def test_a_flag_in_another_spelling_or_in_metadata_of_a_message_counts(flag):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", **flag}]
    outcome = normalize({"messages": messages})
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1]["loss"] is False


def test_reasoning_in_camel_case_is_read():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "1", "reasoningContent": "So."}]
    outcome = normalize({"messages": messages})
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1] == {"role": "assistant", "content": "1", "reasoning_content": "So."}


def outcome_of_answers(*answers, **more):
    question = {"role": "user", "content": "Hi"}
    return normalize({"messages": [question, *[{"role": "assistant", **answer} for answer in answers]], **more})


def test_the_analysis_of_harmony_is_the_reasoning_of_the_final_answer():
    outcome = outcome_of_answers({"channel": "analysis", "content": "So."}, {"channel": "final", "content": "1"})
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1:] == [{"role": "assistant", "content": "1", "reasoning_content": "So."}]


SPOKEN = [
    *[{"role": "assistant", **more} for more in ({}, {"tool_calls": [call()]})],
    *[{"role": "assistant", "channel": channel} for channel in ("analysis", "commentary", "final")],
    {"role": "assistant", "channel": "commentary", "recipient": "functions.add"},
    *[{"role": "tool_call", **more} for more in ({}, {"name": "add"}, {"name": "add", "arguments": "{}"})],
    *[{"role": role} for role in ("reasoning", "tool", "user", "system")],
]
FINAL = {"role": "assistant", "content": "Done."}


@pytest.mark.parametrize("message", SPOKEN, ids=str)
def test_no_text_under_a_key_that_is_read_disappears(message):
    """It is in the conversation, or counted as not read, or the row is rejected: for each key, and each two of them."""
    role = role_of(message["role"])
    keys = sorted(MESSAGE_KEYS[role].keys() - {*SPEAKER_KEYS, *TRAIN_FLAGS, "mask", "channel", "recipient"})
    calls = [{"name": "add", "arguments": {}}, {"arguments": {"a": "%s"}, "name": "add"}, {"a": "%s"}]
    written = ["%s", *[json.dumps(value) for value in calls]]
    for first, second in itertools.combinations_with_replacement([key for key in keys if key not in message], 2):
        for form in written:
            spoken = {**message, first: form.replace("%s", "WORD"), second: form.replace("%s", "TEXT")}
            not_read = NotRead()
            outcome = normalize({"messages": [USER, spoken, FINAL]}, not_read=not_read)
            not_read.end_row("a:1", True)
            if isinstance(outcome, Rejection) or not_read.counts:
                continue
            said = json.dumps(outcome.messages)
            assert all(word not in json.dumps(spoken) or word in said for word in ("WORD", "TEXT")), spoken


@pytest.mark.parametrize("key", ["thinking", "reasoning_content", "reasoning", "thought"])
@pytest.mark.parametrize("content", [None, "", "So."])
def test_the_analysis_of_harmony_may_be_under_a_key_for_reasoning(key, content):
    outcome = outcome_of_answers(
        {"channel": "analysis", "content": content, key: "So."}, {"channel": "final", "content": "1"}
    )
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1:] == [{"role": "assistant", "content": "1", "reasoning_content": "So."}]


def test_what_harmony_sends_to_a_function_is_a_call():
    outcome = outcome_of_answers(
        {"channel": "analysis", "content": "So."},
        {"channel": "commentary", "recipient": "functions.add", "content": '{"a": 1}'},
    )
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert outcome.messages[1:] == [
        {"role": "assistant", "content": "", "reasoning_content": "So.", "tool_calls": [call]}
    ]


def test_what_harmony_says_before_a_call_is_text_of_the_same_turn():
    """gpt-oss calls it a preamble: commentary for the user, without a recipient."""
    outcome = outcome_of_answers(
        {"channel": "analysis", "content": "So."},
        {"channel": "commentary", "content": "I look."},
        {"channel": "commentary", "recipient": "functions.add", "content": '{"a": 1}'},
    )
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert outcome.messages[1:] == [
        {"role": "assistant", "content": "I look.", "reasoning_content": "So.", "tool_calls": [call]}
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"channel": "draft", "content": "1"},
        {"channel": "final", "recipient": "functions.add", "content": "{}"},
    ],
    ids=str,
)
def test_another_channel_of_harmony_is_not_trained(answer):
    outcome = outcome_of_answers(answer)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "unknown-channel"


TOOLS = [{"type": "function", "function": {"name": "add"}}]


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ('{"name": "add", "parameters": {"a": 1}}', ""),
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', ""),
        ('I add. <function_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</function_call>', "I add."),
        ('<functioncall> {"name": "add", "arguments": {"a": 1}}', ""),
        ("""<functioncall> {"name": "add", "arguments": '{"a": 1}'}""", ""),
        ("I add. [TOOL_CALLS] [{'name': 'add', 'arguments': {'a': 1}}]", "I add."),
    ],
)
def test_an_answer_that_is_a_call_in_text_is_a_call(text, before):
    outcome = outcome_of_answers({"content": text}, tools=TOOLS)
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert outcome.messages[1] == {"role": "assistant", "content": before, "tool_calls": [call]}


@pytest.mark.parametrize("text", ['{"name": "Ann", "parameters": {}}', '{"name": "add"}', "[TOOL_CALLS] is a token."])
def test_json_that_is_no_call_of_a_tool_is_an_answer(text):
    outcome = outcome_of_answers({"content": text}, tools=TOOLS)
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1]["content"] == text


@pytest.mark.parametrize(
    "text",
    [
        "<thinking>So.</thinking>\n1",
        "<THINK>So.</THINK>1",
        "[THINK]So.[/THINK]1",
        "<|begin_of_thought|>So.<|end_of_thought|>\n<|begin_of_solution|>1<|end_of_solution|>",
    ],
)
def test_a_thought_between_other_tags_is_reasoning(text):
    outcome = outcome_of_answers({"content": text})
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1] == {"role": "assistant", "content": "1", "reasoning_content": "So."}


@pytest.mark.parametrize("text", ["<thinking>So. 1", "<thinking>a</thinking><thinking>b</thinking>1"])
def test_a_thought_without_an_end_rejects_the_row(text):
    outcome = outcome_of_answers({"content": text})
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "think-tags"


@pytest.mark.parametrize("more", [{"attachments": [{"url": "a.png"}]}, {"media": ["a.png"]}, {"imageUrl": "a.png"}])
def test_what_is_attached_to_a_message_rejects_the_row(more):
    outcome = outcome_of_answers({"content": "<image> A cat.", **more})
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, next(iter(more)) in outcome.evidence) == ("non-text-content", True)


@pytest.mark.parametrize("nothing", [[None], [[]], [], {"bytes": None, "path": None}])
def test_no_picture_is_no_picture(nothing):
    assert isinstance(outcome_of_answers({"content": "A cat.", "images": nothing}), Conversation)


def test_the_parts_of_gemini_are_calls_and_results():
    messages = [
        {"role": "user", "parts": [{"text": "1 + 1?"}]},
        {"role": "model", "parts": [{"text": "I add."}, {"functionCall": {"name": "add", "args": {"a": 1}}}]},
        {"role": "function", "parts": [{"functionResponse": {"name": "add", "response": {"sum": 2}}}]},
        {"role": "model", "parts": [{"text": "2"}]},
    ]
    outcome = normalize({"messages": messages})
    assert isinstance(outcome, Conversation)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert outcome.messages[1:] == [
        {"role": "assistant", "content": "I add.", "tool_calls": [call]},
        {"role": "tool", "content": '{"sum": 2}'},
        {"role": "assistant", "content": "2"},
    ]
    messages[2]["role"] = "user"
    assert normalize({"messages": messages}) == outcome


@pytest.mark.parametrize("part", [{"inlineData": {"data": "aGk="}}, {"fileData": {"fileUri": "a.png"}}])
def test_data_among_the_parts_of_gemini_reject_the_row(part):
    outcome = outcome_of_answers({"parts": [{"text": "A cat."}, part]})
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "non-text-content"


@pytest.mark.parametrize("is_first", [False, True])
def test_text_beside_results_of_tools_follows_them(is_first):
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "2"}
    text = {"type": "text", "text": "Go on."}
    parts = [text, result] if is_first else [result, text]
    outcome = normalize({"messages": [{"role": "user", "content": parts}]})
    assert isinstance(outcome, Conversation)
    assert outcome.messages == [
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "user", "content": "Go on."},
    ]


@pytest.mark.parametrize(
    "result",
    [[{"type": "file", "name": "a.py"}], [{"type": "directory"}, {"type": "text", "name": "city"}]],
    ids=str,
)
def test_a_result_of_objects_that_are_no_parts_is_json(result):
    outcome = normalize({"messages": [{"role": "tool", "content": result}]})
    assert isinstance(outcome, Conversation)
    assert json.loads(outcome.messages[0]["content"]) == result


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": "a.png"}, {"type": "document", "source": {}}])
def test_a_file_in_a_result_rejects_the_row(part):
    outcome = normalize({"messages": [{"role": "tool", "content": [part]}]})
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "non-text-content"


def test_texts_of_the_system_are_paragraphs():
    outcome = normalize({"messages": [{"role": "system", "content": ["Be kind.", "Be short.\n", "Stop."]}]})
    assert isinstance(outcome, Conversation)
    assert outcome.messages[0]["content"] == "Be kind.\n\nBe short.\nStop."


def test_arguments_that_are_null_as_text_are_none():
    outcome = outcome_of_answers({"tool_calls": [{"function": {"name": "now", "arguments": "null"}}]})
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}
