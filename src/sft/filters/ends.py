"""The ends of a conversation: turns before the first question, and after the last answer (`filter.ends`).

    context   answers before the first user message stay, untrained; what follows the last answer is cut
    trim      both are cut
    reject    nothing is cut, and sft.filters.structure rejects the conversation (role-order, last-turn-not-assistant)

Logs that were cut into chunks begin with an answer or end with a question. What is cut is counted in the ledger.
"""

from dataclasses import replace
from typing import NamedTuple

from sft.conversation import Conversation


class Ends(NamedTuple):
    """A conversation after the policy, and how many turns were made context, or cut."""

    conversation: Conversation
    context: int = 0
    cut: int = 0


def apply_ends(conversation: Conversation, policy: str) -> Ends:
    """Return the conversation with its ends as `policy` says. One without a question or an answer stays as it is."""
    messages = conversation.messages
    roles = [message["role"] for message in messages]
    if policy == "reject" or (roles[-1] == "assistant" and roles[0] == "user"):
        return Ends(conversation)
    first = roles.index("user") if "user" in roles else len(roles)
    stop = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else 0
    early = [index for index in range(first) if roles[index] != "system"]
    if stop <= first or (not early and stop == len(roles)):
        return Ends(conversation)
    if policy == "trim":
        kept = [message for index, message in enumerate(messages[:stop]) if index >= first or index not in early]
        return Ends(replace(conversation, messages=kept), cut=len(messages) - len(kept))
    start = [{**turn, "loss": False} if turn["role"] == "assistant" else turn for turn in messages[:first]]
    kept = [*start, *messages[first:stop]]
    return Ends(replace(conversation, messages=kept), len(early), len(messages) - len(kept))
