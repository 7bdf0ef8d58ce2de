"""Consistency: every action of a trajectory against goals, tools and results, by rules and without a network.

Each rule is a function with one stable reason and its evidence; `check_consistency` gives the first hit.
A rule speaks only where next to nothing else can be meant: what it misses is left to the judge
(sft.filters.judge.judge). Six look at actions (sft.filters.rules.actions), five at texts (sft.filters.rules.replies).

    repeated-call             a reading call, made again at once, when the result was good and is the same
    ignored-error             every result since the user spoke is an error, and the answer reports success
    claimed-action            the answer says that something was booked or sent, and nothing was called
    announced-action          the last answer ends with "let me check" and calls nothing
    invented-id               an argument is an order number, an e-mail address ... that nobody mentioned
    denied-tools              "I have no access to tools", after calling them
    answer-against-reasoning  the reasoning ends in one boxed result, the answer in another
    truncated                 an unclosed code fence, unfinished JSON, or a last word that cannot end a sentence
    placeholder-answer        the whole answer is "[insert result]"
    speaks-for-user           the answer goes on with the next turns: "Human: ...", "Assistant: ..."
    wrong-language            answered in another script than asked
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
    # Each of ACTIONS asks for tools, for a call, or for a result.
    acts = conversation.tools or any("tool_calls" in one or one["role"] == "tool" for one in conversation.messages)
    for check in CHECKS if acts else REPLIES:
        if rejection := check(conversation):
            return rejection
    return None
