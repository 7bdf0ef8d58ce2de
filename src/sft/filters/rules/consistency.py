"""Consistency: the actions of a conversation against its goals, tools and results, by rules and without a network.

Each rule is a function with one stable reason and its evidence; `check_consistency` returns the first rejection. A rule
rejects only what can hardly mean anything else; the judge (sft.filters.judge.judge) can look for the rest. Six rules
are about actions (sft.filters.rules.actions), five about answers (sft.filters.rules.replies).

    repeated-call             a reading call, made again at once, though the result was good and is the same
    ignored-error             every result since the last user turn is an error, and the answer reports success
    claimed-action            the answer claims that something was booked or sent, but nothing was called
    announced-action          the last answer ends with "let me check" and calls nothing
    invented-id               an argument is an order number, an e-mail address ... that no message mentions
    denied-tools              "I have no access to tools", after calling them
    answer-against-reasoning  the reasoning ends in one boxed result, the answer in another
    truncated                 an unclosed code fence, unfinished JSON, or a last word that cannot end a sentence
    placeholder-answer        the whole answer is "[insert result]"
    speaks-for-user           the answer continues with the next turns: "Human: ...", "Assistant: ..."
    wrong-language            the answer is in another script than the question
"""

from collections.abc import Callable

from sft.conversation import Conversation, Rejection
from sft.filters.rules.actions import (
    check_announced_action,
    check_claimed_action,
    check_denied_tools,
    check_ignored_error,
    check_invented_id,
    check_repeated_call,
)
from sft.filters.rules.replies import (
    check_answer_against_reasoning,
    check_placeholder_answer,
    check_speaks_for_user,
    check_truncated,
    check_wrong_language,
)

Check = Callable[[Conversation], Rejection | None]
ACTIONS: tuple[Check, ...] = (
    check_repeated_call,
    check_ignored_error,
    check_claimed_action,
    check_announced_action,
    check_invented_id,
    check_denied_tools,
)
REPLIES: tuple[Check, ...] = (
    check_answer_against_reasoning,
    check_truncated,
    check_placeholder_answer,
    check_speaks_for_user,
    check_wrong_language,
)
CHECKS = ACTIONS + REPLIES


def check_consistency(conversation: Conversation) -> Rejection | None:
    """Return the first inconsistency of a conversation, or None."""
    # Each of ACTIONS needs tools, a call, or a result.
    has_actions = conversation.tools or any(
        "tool_calls" in message or message["role"] == "tool" for message in conversation.messages
    )
    for check in CHECKS if has_actions else REPLIES:
        if rejection := check(conversation):
            return rejection
    return None
