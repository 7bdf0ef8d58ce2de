"""Structure: the faults of a conversation in normal form, each with its own stable reason.

`check_structure` applies the checks in order and returns the first rejection, or None. Each check looks at one thing
and gives what it found as evidence.
"""

from collections.abc import Callable
from typing import Any

from sft.conversation import THINK_TAGS, Conversation, Rejection, trained_turns
from sft.filters.control_tokens import check_control_tokens
from sft.filters.encoding import find_garbage, quote_match
from sft.tool_schemas import ToolSchemas

# About 2 million tokens. What is too long to train is said in tokens (prep.max_tokens).
MAX_CHARS = 1 << 23
# The roles that may come before a role; "" is the start.
PREVIOUS_ROLES = {
    "system": {"", "system", "user", "assistant", "tool"},
    "user": {"", "system", "user", "assistant", "tool"},
    "assistant": {"system", "user", "tool"},
    "tool": {"assistant", "tool"},
}


def check_structure(conversation: Conversation, control_tokens: str = "reject") -> Rejection | None:
    """Return the first structural fault of a conversation, or None.

    Args:  control_tokens: a policy of sft.filters.control_tokens.
    """
    if rejection := check_length(conversation):
        return rejection
    for check in CHECKS:
        if rejection := check(conversation):
            return rejection
    return check_control_tokens(conversation, control_tokens)


def check_length(conversation: Conversation) -> Rejection | None:
    """The conversation is no longer than any context, so that its row costs bounded time and memory."""
    if len(conversation.canonical) <= MAX_CHARS:
        return None
    return Rejection("too-long", f"{len(conversation.canonical)} characters of JSON; the limit is {MAX_CHARS}")


def check_encoding(conversation: Conversation) -> Rejection | None:
    """Text that was decoded wrongly, or that has hidden characters."""
    written, by_machines = [("tools", text) for text in _strings(conversation.tools)], list[tuple[str, str]]()
    for index, message in enumerate(conversation.messages):
        place = f"messages[{index}]"
        (by_machines if message["role"] == "tool" else written).append((place, message["content"]))
        if "reasoning_content" in message:
            written.append((place, message["reasoning_content"]))
        if "tool_calls" in message:
            by_machines += [(place, text) for text in _strings(message["tool_calls"])]
    garbage = find_garbage(written, by_machines)
    return Rejection("encoding-garbage", garbage) if garbage else None


def check_roles(conversation: Conversation) -> Rejection | None:
    """The order of roles: system messages anywhere, a user before the first trained assistant, results after calls, an
    assistant at the end.
    """
    previous, is_asked = "", False
    for index, message in enumerate(conversation.messages):
        role = message["role"]
        is_context = not is_asked and message.get("loss", True) is False and previous in ("", "system", "tool")
        if (previous not in PREVIOUS_ROLES[role] or (role == "assistant" and not is_asked)) and not is_context:
            return Rejection("role-order", f"messages[{index}]: {role} after {previous or 'the start'}")
        previous, is_asked = role, is_asked or role == "user"
    if previous != "assistant":
        return Rejection("last-turn-not-assistant", f"the last message is from {previous}")
    return None


def check_turns(conversation: Conversation) -> Rejection | None:
    """Every user turn has content, every assistant turn content or calls, and at least one is trained."""
    for index, message in enumerate(conversation.messages):
        if not message["content"].strip() and "tool_calls" not in message:
            if message["role"] == "assistant":
                return Rejection("empty-answer", f"messages[{index}]: neither content nor tool calls")
            if message["role"] == "user":
                return Rejection("empty-question", f"messages[{index}]: no content")
    if not trained_turns(conversation.messages):
        return Rejection("nothing-trained", "every assistant turn has loss: false")
    return None


def check_tools(conversation: Conversation) -> Rejection | None:
    """No two different tools have the same name."""
    known: dict[str, Any] = {}
    for index, tool in enumerate(conversation.tools or []):
        name = tool["function"]["name"]
        if known.setdefault(name, tool) != tool:
            return Rejection("duplicate-tool", f"tools[{index}]: a different tool is called {name} too")
    return None


def check_calls(conversation: Conversation) -> Rejection | None:
    """Calls name an existing tool, with arguments that its schema allows."""
    tools = {tool["function"]["name"]: tool["function"].get("parameters") for tool in conversation.tools or []}
    schemas = ToolSchemas(tools)
    for index, message in enumerate(conversation.messages):
        for call in message.get("tool_calls", []):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if not tools:
                return Rejection("tool-call-without-tools", f"messages[{index}] calls {name}")
            if name not in tools:
                return Rejection("unknown-tool", f"messages[{index}] calls {name}; tools: {', '.join(sorted(tools))}")
            if fault := schemas.fault(name, arguments):
                reason = "invalid-tool-schema" if fault.startswith("schema: ") else "arguments-against-schema"
                return Rejection(reason, f"messages[{index}] {name}: {fault}")
    return None


def check_results(conversation: Conversation) -> Rejection | None:
    """Every tool result answers an open call, and all calls are answered before the next other message."""
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
    """Think tags that normalizing left are unbalanced, nested, or not at the start of an answer."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            for text in (message["content"], message.get("reasoning_content", "")):
                if match := THINK_TAGS.search(text):
                    return Rejection("think-tags", f"messages[{index}]: {quote_match(text, match)}")
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
    texts, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item
            waiting += item.values()
    return texts
