"""Ends: what comes before the first question and after the last answer."""

import pytest

from sft.conversation import Conversation
from sft.filters.ends import apply_ends
from sft.filters.structure import check_structure

SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "a"}
ANSWER, RESULT = {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}
UNTRAINED = {**ANSWER, "loss": False}


@pytest.mark.parametrize(
    ("messages", "trimmed", "as_context"),
    [
        ([USER, ANSWER], [USER, ANSWER], [USER, ANSWER]),
        ([SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER]),
        ([ANSWER, USER, ANSWER], [USER, ANSWER], [UNTRAINED, USER, ANSWER]),
        ([SYSTEM, ANSWER, USER, ANSWER], [SYSTEM, USER, ANSWER], [SYSTEM, UNTRAINED, USER, ANSWER]),
        ([USER, ANSWER, USER], [USER, ANSWER], [USER, ANSWER]),
        ([USER, ANSWER, RESULT], [USER, ANSWER], [USER, ANSWER]),
        ([ANSWER, USER, ANSWER, USER], [USER, ANSWER], [UNTRAINED, USER, ANSWER]),
        ([ANSWER, USER], [ANSWER, USER], [ANSWER, USER]),
        ([USER], [USER], [USER]),
        ([ANSWER], [ANSWER], [ANSWER]),
    ],
    ids=lambda messages: "".join(message["role"][0] for message in messages),
)
def test_each_policy(messages, trimmed, as_context):
    conversation = Conversation(messages, None)
    assert apply_ends(conversation, "reject").conversation is conversation
    for policy, expected in (("trim", trimmed), ("context", as_context)):
        ends = apply_ends(conversation, policy)
        assert ends.conversation.messages == expected
        assert ends.cut == len(messages) - len(expected)
        assert ends.context == sum(message not in messages for message in expected)
        assert (ends.conversation is conversation) == (expected == messages)
    assert messages == conversation.messages


@pytest.mark.parametrize("policy", ["context", "trim"])
def test_what_is_left_has_a_sound_order(policy):
    conversation = Conversation([SYSTEM, ANSWER, USER, ANSWER, USER], None)
    assert check_structure(conversation) is not None
    assert check_structure(apply_ends(conversation, policy).conversation) is None


def test_an_answer_before_the_question_is_context_only_if_it_is_not_trained():
    assert check_structure(Conversation([UNTRAINED, USER, ANSWER], None)) is None
    rejection = check_structure(Conversation([ANSWER, USER, ANSWER], None))
    assert rejection is not None
    assert rejection.reason == "role-order"
