"""Structure: what a conversation in normal form must not be, each check with its own stable reason.

`check_structure` applies the checks in order and gives the first rejection, or None. A check looks at one
thing and shows what it found.
"""

import json
from collections.abc import Callable
from typing import Any

from sft.conversation import THINK_TAGS, Conversation, Rejection
from sft.filters.control_tokens import check_control_tokens
from sft.filters.encoding import around, find_garbage
from sft.tool_schemas import schema_fault

# Which roles may stand before a role; "" is the start.
BEFORE = {
    "system": {"", "system", "user", "assistant", "tool"},
    "user": {"", "system", "user", "assistant"},
    "assistant": {"system", "user", "tool"},
    "tool": {"assistant", "tool"},
}


def check_structure(
    conversation: Conversation, max_chars: int, max_message_chars: int | None = None, markup: str = "reject"
) -> Rejection | None:
    """Return the first structural fault of a conversation, or None.

    `max_chars`, `max_message_chars`: the longest conversation and the longest message. `markup`: a policy of
    sft.filters.control_tokens for typed control tokens.
    """
    for check in CHECKS:
        if rejection := check(conversation):
            return rejection
    if rejection := check_control_tokens(conversation, markup):
        return rejection
    return check_length(conversation, max_chars, max_message_chars)


def check_encoding(conversation: Conversation) -> Rejection | None:
    """Text that was decoded wrongly, or that holds characters which nobody sees."""
    written, returned = [("tools", text) for text in _strings(conversation.tools)], list[tuple[str, str]]()
    for index, message in enumerate(conversation.messages):
        place = f"messages[{index}]"
        (returned if message["role"] == "tool" else written).append((place, message["content"]))
        if "reasoning_content" in message:
            written.append((place, message["reasoning_content"]))
        if "tool_calls" in message:
            returned += [(place, text) for text in _strings(message["tool_calls"])]
    garbage = find_garbage(written, returned)
    return Rejection("encoding-garbage", garbage) if garbage else None


def check_roles(conversation: Conversation) -> Rejection | None:
    """A user begins, perhaps after the system; assistants answer; tools answer calls; an assistant ends.

    The system may speak again between the turns.
    """
    previous, is_asked = "", False
    for index, message in enumerate(conversation.messages):
        role = message["role"]
        if previous not in BEFORE[role] or (role == "assistant" and not is_asked):
            return Rejection("role-order", f"messages[{index}]: {role} after {previous or 'the start'}")
        previous, is_asked = role, is_asked or role == "user"
    if previous != "assistant":
        return Rejection("last-turn-not-assistant", f"the last message is from {previous}")
    return None


def check_turns(conversation: Conversation) -> Rejection | None:
    """Every user turn asks something, every assistant turn says or calls something, and one is trained."""
    for index, message in enumerate(conversation.messages):
        if not message["content"].strip() and "tool_calls" not in message:
            if message["role"] == "assistant":
                return Rejection("empty-answer", f"messages[{index}]: neither content nor tool calls")
            if message["role"] == "user":
                return Rejection("empty-question", f"messages[{index}]: no content")
    if not any(message["role"] == "assistant" and message.get("loss", True) for message in conversation.messages):
        return Rejection("nothing-trained", "every assistant turn has loss: false")
    return None


def check_tools(conversation: Conversation) -> Rejection | None:
    """No two different tools have one name."""
    known: dict[str, Any] = {}
    for index, tool in enumerate(conversation.tools or []):
        name = tool["function"]["name"]
        if known.setdefault(name, tool) != tool:
            return Rejection("duplicate-tool", f"tools[{index}]: a different tool is called {name} too")
    return None


def check_calls(conversation: Conversation) -> Rejection | None:
    """Calls name a tool that exists, with arguments that its schema allows."""
    tools = {tool["function"]["name"]: tool["function"] for tool in conversation.tools or []}
    for index, message in enumerate(conversation.messages):
        for call in message.get("tool_calls", []):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if not tools:
                return Rejection("tool-call-without-tools", f"messages[{index}] calls {name}")
            if name not in tools:
                return Rejection("unknown-tool", f"messages[{index}] calls {name}; tools: {', '.join(sorted(tools))}")
            if fault := schema_fault(tools[name].get("parameters"), arguments):
                reason = "invalid-tool-schema" if fault.startswith("schema: ") else "arguments-against-schema"
                return Rejection(reason, f"messages[{index}] {name}: {fault}")
    return None


def check_results(conversation: Conversation) -> Rejection | None:
    """Every tool result answers an open call, and calls are answered before the conversation goes on."""
    open_calls: list[str | None] = []
    for index, message in enumerate(conversation.messages):
        if message["role"] == "tool":
            if not open_calls:
                return Rejection("tool-result-without-call", f"messages[{index}]")
            wanted = message.get("tool_call_id")
            if wanted is None or None in open_calls:
                open_calls.pop(0)
            elif wanted in open_calls:
                open_calls.remove(wanted)
            else:
                known = ", ".join(str(call) for call in open_calls)
                return Rejection("tool-call-id-mismatch", f"messages[{index}] answers {wanted}; open calls: {known}")
        else:
            if open_calls:
                return Rejection("tool-call-without-result", f"messages[{index}]: {len(open_calls)} calls unanswered")
            open_calls = [call.get("id") for call in message.get("tool_calls", [])]
            named = [call for call in open_calls if call is not None]
            if len(set(named)) < len(named):
                return Rejection("tool-call-id-mismatch", f"messages[{index}]: one id, two calls: {', '.join(named)}")
    return None


def check_think_tags(conversation: Conversation) -> Rejection | None:
    """Think tags that normalising left in place are unbalanced, nested, or not at the start of an answer."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            for text in (message["content"], message.get("reasoning_content", "")):
                if found := THINK_TAGS.search(text):
                    return Rejection("think-tags", f"messages[{index}]: {around(text, found)}")
    return None


def check_length(conversation: Conversation, max_chars: int, max_message_chars: int | None) -> Rejection | None:
    """Neither the conversation nor a message of it is too long."""
    most = max_chars if max_message_chars is None else min(max_chars, max_message_chars)
    if 2 * len(conversation.canonical) <= most:  # spaces in the arguments do not double it
        return None
    total = 0
    for index, message in enumerate(conversation.messages):
        length = len(message["content"]) + len(message.get("reasoning_content", ""))
        length += sum(len(_json(call["function"]["arguments"])) for call in message.get("tool_calls", []))
        total += length
        if max_message_chars is not None and length > max_message_chars:
            limit = f"filter.max_message_chars is {max_message_chars}"
            return Rejection("message-too-long", f"messages[{index}]: {length} characters; {limit}")
    if total > max_chars:
        return Rejection("too-long", f"{total} characters; filter.max_chars is {max_chars}")
    return None


CHECKS: tuple[Callable[[Conversation], Rejection | None], ...] = (
    check_encoding,
    check_roles,
    check_turns,
    check_tools,
    check_calls,
    check_results,
    check_think_tags,
)


def _strings(value: Any) -> list[str]:
    """Return all keys and texts of a JSON-like value."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item
            waiting += item.values()
    return found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""
