"""Columns beside the messages: flags of turns, masks, arguments of the template, media."""

import json

import pytest

from sft.conversation import Conversation, Rejection
from sft.formats.messages import normalize
from sft.formats.not_read import NotRead

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
MESSAGES = [USER, ANSWER, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Bye"}]


def outcome_of(row, messages=MESSAGES, not_read=None):
    return normalize({"messages": messages}, row, {"messages"}, not_read)


def trained(row, messages=MESSAGES):
    """Return which answers are trained."""
    outcome = outcome_of(row, messages)
    assert isinstance(outcome, Conversation), outcome
    return [message.get("loss", True) for message in outcome.messages if message["role"] == "assistant"]


@pytest.mark.parametrize(
    "row",
    [
        {"loss_mask": [0, 0, 0, 1]},
        {"train": [False, True]},
        {"masked": [1, 1, 1, 0]},
        {"weight": [None, 0, None, 1]},
        {"metadata": {"train_turns": [False, False, False, True], "source": "x"}},
        {"metadata": json.dumps({"train_turns": [False, True]})},
        {"train_turns": ["false", "true"]},
        {"loss_mask": [0, 0, 0, 1], "metadata": {"train_turns": [False, True]}},
    ],
    ids=str,
)
def test_a_list_has_a_flag_for_each_message_or_for_each_answer(row):
    assert trained(row) == [False, True]


@pytest.mark.parametrize("flags", [[0, 0, 0, 1], [0, 1]])
@pytest.mark.parametrize(
    "message_of",
    [
        json.dumps,
        lambda message: "  " + json.dumps(message, indent=1),
        lambda message: {"role": None, "from": message["role"].upper(), "value": message["content"]},
        lambda message: {"type": message["role"], "content": message["content"]},
    ],
    ids=["text", "indented-text", "from", "type"],
)
def test_flags_find_their_messages_in_every_form(message_of, flags):
    assert trained({"loss_mask": flags}, [message_of(message) for message in MESSAGES]) == [False, True]


def test_a_message_that_is_broken_text_is_named_by_its_place():
    outcome = outcome_of({"loss_mask": [0, 1]}, [USER, '{"role": '])
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.evidence.partition(" ")[0]) == ("malformed-row", "messages[1]:")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"mask": "User"}, [True, True]),
        ({"train": True, "weight": 1}, [True, True]),
        ({"loss": 2.31}, [True, True]),  # a statistic
        ({"mask": "A [MASK] word"}, [True, True]),
    ],
    ids=str,
)
def test_a_flag_of_the_whole_row(row, expected):
    assert trained(row) == expected


@pytest.mark.parametrize("row", [{"mask": "Assistant"}, {"train": False}, {"weight": 0}, {"masked": "true"}], ids=str)
def test_a_row_that_is_not_to_be_trained_is_not(row):
    assert trained(row) == [False, False]


@pytest.mark.parametrize(
    "row",
    [
        {"weight": 0.5},
        {"loss_weight": [0, 0.5]},
        {"loss_mask": [1, 0, 1]},
        {"mask": [0, 1, 0, 1]},
        {"mask": 1},
        {"loss_mask": [0, 1], "metadata": {"train_turns": [True, True]}},
    ],
    ids=str,
)
def test_a_flag_that_is_unclear_rejects_the_row_and_is_named(row):
    outcome = outcome_of(row)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "unclear-train-flag"
    assert any(name in outcome.evidence for name in row)


def test_a_flag_of_a_message_may_not_contradict_the_row():
    messages = [USER, {**ANSWER, "train": True}]
    assert trained({"loss_mask": [0, 1]}, messages) == [True]
    outcome = outcome_of({"loss_mask": [1, 0]}, messages)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "unclear-train-flag"
    assert outcome.evidence.startswith("messages[1]: ")


@pytest.mark.parametrize(
    ("kwargs", "thought", "is_kept"),
    [
        ({"enable_thinking": False}, None, True),
        ({"enable_thinking": True}, "So.", True),
        ({"enable_thinking": None}, "So.", True),
        ({"enable_thinking": False}, "So.", False),
        ({"enable_thinking": True}, None, False),
        ({"thinking": False}, "So.", False),
        ({"enable_thinking": "no"}, None, False),
        ({"thinking_budget": 5, "reasoning_effort": "low", "low_effort": True, "enable_thinking": False}, None, True),
        ({"reasoning_effort": ["low"]}, None, False),
        ({"reasoning_effort": {"level": "low"}}, None, False),
        ({"reasoning_effort": "x" * 65}, None, False),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_arguments_of_the_template_are_honored_or_reject_the_row(kwargs, thought, is_kept, as_text):
    """prep renders an answer with reasoning with thinking on, and one without with thinking off."""
    answer = {**ANSWER, "reasoning_content": thought} if thought else ANSWER
    column = json.dumps(kwargs) if as_text else kwargs
    outcome = outcome_of({"chat_template_kwargs": column}, [USER, answer])
    assert isinstance(outcome, Conversation) == is_kept
    if isinstance(outcome, Rejection):
        assert outcome.reason == "unsupported-template-kwargs"


@pytest.mark.parametrize(
    "row",
    [
        {"chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": False, "seed": None}},
        {"metadata": {"chatTemplateKwargs": '{"reasoning_effort": "low"}'}, "enable_thinking": False},
        {"chat_template_kwargs": {"reasoning_effort": "low", "custom_instructions": "", "xml_tools": [], "extra": {}}},
    ],
    ids=str,
)
def test_arguments_go_to_the_template_beside_the_conversation(row):
    """Whether the template reads them, prep says."""
    outcome, plain = outcome_of(row), outcome_of({})
    assert isinstance(outcome, Conversation)
    assert outcome.template_kwargs == {"reasoning_effort": "low"}
    assert (outcome.id, outcome.messages) == (plain.id, plain.messages)


@pytest.mark.parametrize("name", ["image", "images", "image_url", "audios", "video_path", "videos"])
def test_a_row_with_media_is_rejected_by_name(name):
    outcome = outcome_of({name: ["a.jpg"]})
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, name in outcome.evidence) == ("non-text-content", True)
    assert isinstance(outcome_of({name: []}), Conversation)


def test_a_message_with_media_is_rejected_by_name():
    outcome = outcome_of({}, [{**USER, "images": ["aGk="]}, ANSWER])
    assert isinstance(outcome, Rejection)
    assert "images" in outcome.evidence


@pytest.mark.parametrize(("text", "is_kept"), [("<image>What is it?", False), ("What is it?", True)])
def test_an_id_of_a_picture_matters_only_where_the_text_has_its_place(text, is_kept):
    not_read = NotRead()
    outcome = outcome_of({"image_id": 7}, [{"role": "user", "content": text}, ANSWER], not_read)
    assert isinstance(outcome, Conversation) == is_kept
    assert isinstance(outcome_of({}, [{"role": "user", "content": text}, ANSWER]), Conversation)


def test_an_object_is_one_value_unless_a_part_of_it_is_read():
    not_read = NotRead()
    row = {"extra": {"a": 1, "b": 2}, "metadata": {"train_turns": [0, 1], "id": 5}, "data": {"chat": 1, "id": 2}}
    outcome = normalize({"messages": MESSAGES}, row, {"data.chat"}, not_read)
    not_read.end_row("a:1", isinstance(outcome, Conversation))
    assert set(not_read.counts) == {"extra", "metadata.id", "data.id"}


@pytest.mark.parametrize(
    "row",
    [
        {"loss_mask": "[0, 1]"},
        {"train_turns": " [false, true]"},
        {"metadata": '{"loss_mask": [0, 1]}'},
        {"metadata": '{"train_turns" : [0, 1]}'},
    ],
)
def test_a_list_of_flags_may_be_json_text(row):
    """As in tables, whose columns hold texts."""
    assert trained(row, [USER, ANSWER, USER, ANSWER]) == [False, True]


@pytest.mark.parametrize("value", ["0 1", "[0, 1", {"0": 0}, 0.5])
def test_a_loss_mask_that_is_not_read_rejects_the_row(value):
    outcome = outcome_of({"loss_mask": value}, [USER, ANSWER, USER, ANSWER])
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, "loss_mask" in outcome.evidence) == ("unclear-train-flag", True)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("images", ["a.jpg"], "non-text-content"),
        ("weight", 0.5, "unclear-train-flag"),
        ("train", False, None),
        ("loss", 1.5, None),
    ],
)
def test_an_object_with_the_messages_is_read_as_a_row_is(key, value, reason):
    not_read = NotRead()
    outcome = normalize({"messages": MESSAGES}, {"data": {"chat": MESSAGES, key: value}}, {"data.chat"}, not_read)
    not_read.end_row("a:1", isinstance(outcome, Conversation))
    if isinstance(outcome, Rejection):
        assert (outcome.reason, key in outcome.evidence) == (reason, True)
    else:
        assert reason is None
        assert (set(not_read.counts), "loss" in outcome.messages[1]) == (
            {"data.loss"} if key == "loss" else set(),
            key == "train",
        )


@pytest.mark.parametrize(
    "row",
    [
        {"metadata": {"train": False, "source": "x"}},
        {"meta": json.dumps({"trainable": "false"})},
        {"extra_info": {"Train-On-Turn": 0}},
        {"lossMask": [0, 0, 0, 0]},
        {"assistant_mask": [0, 0]},
        {"ignore": True},
    ],
    ids=str,
)
def test_a_flag_in_another_spelling_or_in_metadata_counts(row):
    assert trained(row) == [False, False]


@pytest.mark.parametrize(
    ("row", "reason", "place"),
    [
        ({"metadata": {"images": ["a.jpg"]}}, "non-text-content", "metadata.images"),
        ({"imageUrl": "a.jpg"}, "non-text-content", "imageUrl"),
        ({"metadata": {"chat_template_kwargs": {"budgets": [5]}}}, "unsupported-template-kwargs", "budgets"),
        ({"chatTemplateKwargs": {"budgets": [5]}}, "unsupported-template-kwargs", "budgets"),
        ({"completion_mask": [0, 0, 1]}, "unclear-train-flag", "completion_mask"),
        ({"assistant_masks": [0, 0, 1]}, "unclear-train-flag", "assistant_masks"),
        ({"label": False}, "rejected-answer", "label"),
    ],
    ids=str,
)
def test_what_metadata_or_a_verdict_says_rejects_the_row_by_name(row, reason, place):
    outcome = outcome_of(row)
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, place in outcome.evidence) == (reason, True)


@pytest.mark.parametrize("row", [{"label": True}, {"label": 0}, {"metadata": {"loss": 2.31}}], ids=str)
def test_a_good_answer_a_class_and_a_statistic_are_counted(row):
    assert trained(row) == [True, True]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "reasoningContent"])
def test_reasoning_beside_the_messages_is_that_of_the_only_answer(name):
    outcome = outcome_of({name: "I greet back."}, [USER, ANSWER])
    assert isinstance(outcome, Conversation)
    assert outcome.messages[1] == {**ANSWER, "reasoning_content": "I greet back."}


@pytest.mark.parametrize("messages", [MESSAGES, [USER, {**ANSWER, "reasoning_content": "No."}]])
def test_reasoning_that_belongs_to_no_single_answer_rejects_the_row(messages):
    outcome = outcome_of({"reasoning": "I greet back."}, messages)
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, "reasoning" in outcome.evidence) == ("unplaced-reasoning", True)


def test_a_column_that_only_switches_reasoning_is_counted():
    not_read = NotRead()
    assert isinstance(outcome_of({"reasoning": "on"}, not_read=not_read), Conversation)
    not_read.end_row("a:1", True)
    assert not_read.counts == {"reasoning": (1, "a:1")}


@pytest.mark.parametrize("nothing", [[None], [[]], [], {"bytes": None, "path": None}])
def test_a_column_without_a_picture_does_not_reject_a_text(nothing):
    assert isinstance(outcome_of({"images": nothing}), Conversation)


def test_a_placeholder_beside_a_column_of_media_rejects_the_row():
    question = {"role": "user", "content": "<image> What is it?"}
    outcome = outcome_of({"media": ["a.png"]}, [question, ANSWER])
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, "media" in outcome.evidence) == ("non-text-content", True)
    assert isinstance(outcome_of({"media": "print"}), Conversation)
