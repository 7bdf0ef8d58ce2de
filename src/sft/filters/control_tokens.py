"""Control tokens and tags of chat templates that are typed as text and would be read as structure.

By policy (`filter.control_tokens`):

    reject    the conversation is rejected as template-markup
    as_text   control tokens pass; prep encodes them as ordinary text, never as a control token
    escape    a backslash is inserted after the first character, <\\|im_end|>, in all text of all roles

Tags that templates write as plain text (<tool_call>, <tool_response>, </parameter>) cannot be told from structure: they
are escaped or rejected. The name of a tool or argument that would end its own tag is always rejected.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sft.conversation import Conversation, Message, Rejection
from sft.filters.encoding import quote_match

# Control tokens of the common chat templates.
CONTROL_TOKEN = re.compile(
    r"<(?:\|(?:im_start|im_end|im_sep|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id"
    r"|python_tag|system|user|assistant|channel|message|start|end|return|call|constrain)\|>"
    r"|\uff5c(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence|tool▁[a-z▁]+)\uff5c>|(?:start|end)_of_turn>|</?SYS>>)"
    r"|\[/?INST\]"
)
# Tags that templates write as plain text around calls and results, and the roles that may not type them.
CALL_TAG, RESULT_TAG = re.compile(r"</?tool_call>"), re.compile(r"</?tool_response>")
TAGS = {"system": (), "user": (RESULT_TAG,), "assistant": (RESULT_TAG, CALL_TAG), "tool": (RESULT_TAG,)}
# A conversation has no control token and no tag if no < is followed and no > preceded by one of these, and there is no
# [INST]. Splitting at one byte is several times faster than searching for longer text.
OPENED = (b"|", "\uff5c".encode())
CLOSED = (b"_turn", b"SYS", b"tool_call", b"tool_response", b"</parameter")
# What ends an argument in the nano3 template, and what names cannot contain there.
ARGUMENT_END, NAME_BREAK = re.compile(r"^</parameter>$", re.MULTILINE), re.compile(r"[<>\n]")


def check_control_tokens(conversation: Conversation, policy: str = "reject") -> Rejection | None:
    """Reject control tokens and tags typed as text: a model would read them as structure, or learn to type them.

    Users and tools may write `<tool_call>`; from an assistant, it would teach calls that nobody executes. The system
    may write `<tool_response>`; from any other role, it is a forged result.
    """
    control_tokens = [] if policy == "as_text" else [CONTROL_TOKEN]
    if may_have_any(conversation):
        for index, message in enumerate(conversation.messages):
            for text in (message["content"], message.get("reasoning_content", ""), *_arguments(message)):
                for pattern in (*control_tokens, *TAGS[message["role"]]):
                    if match := pattern.search(text):
                        return Rejection("template-markup", f"messages[{index}]: {quote_match(text, match)}")
        for pattern in control_tokens:
            if match := pattern.search(text := readable_json(conversation.tools)):
                return Rejection("template-markup", f"tools: {quote_match(text, match)}")
    for place, name, value in _names(conversation):
        if match := NAME_BREAK.search(name) or (ARGUMENT_END.search(value) if isinstance(value, str) else None):
            return Rejection("template-markup", f"{place}: {quote_match(match.string, match)}")
    return None


def may_have_any(conversation: Conversation) -> bool:
    """Return whether a conversation may have a control token or a tag: a fast test that most conversations fail."""
    text = conversation.canonical
    return (
        any([piece.startswith(OPENED) for piece in text.split(b"<")[1:]])
        or any([piece.endswith(CLOSED) for piece in text.split(b">")])
        or b"INST]" in text
    )


def count_control_tokens(conversation: Conversation) -> int:
    """Return how many control tokens are typed as text."""
    if not may_have_any(conversation):
        return 0
    return len(CONTROL_TOKEN.findall(json.dumps([conversation.messages, conversation.tools], ensure_ascii=False)))


def escape(conversation: Conversation) -> Conversation:
    """Return a conversation with a backslash in all that `check_control_tokens` would reject, except names.

    >>> escape(Conversation([{"role": "user", "content": "a <|im_end|> b"}], None)).messages[0]["content"]
    'a <\\\\|im_end|> b'
    """
    if not may_have_any(conversation):
        return conversation
    messages = []
    for message in conversation.messages:
        patterns = [CONTROL_TOKEN, *TAGS[message["role"]]]
        escaped = {**message, "content": _escaped(message["content"], patterns)}
        if "reasoning_content" in message:
            escaped["reasoning_content"] = _escaped(message["reasoning_content"], patterns)
        if "tool_calls" in message:
            escaped["tool_calls"] = [
                {
                    **call,
                    "function": {**function, "arguments": _escaped(function["arguments"], [*patterns, ARGUMENT_END])},
                }
                for call in message["tool_calls"]
                for function in [call["function"]]
            ]
        messages.append(escaped)
    return replace(conversation, messages=messages, tools=_escaped(conversation.tools, [CONTROL_TOKEN]))


def _escaped(value: Any, patterns: list[re.Pattern[str]]) -> Any:
    """Return a JSON-like value with its texts escaped; keys are names and stay."""
    if isinstance(value, str):
        for pattern in patterns:
            value = pattern.sub(lambda match: f"{match[0][0]}\\{match[0][1:]}", value)
        return value
    if isinstance(value, list):
        return [_escaped(item, patterns) for item in value]
    return {key: _escaped(item, patterns) for key, item in value.items()} if isinstance(value, dict) else value


def _arguments(message: Message) -> Iterator[str]:
    return (readable_json(call["function"]["arguments"]) for call in message.get("tool_calls", []))


def _names(conversation: Conversation) -> Iterator[tuple[str, str, Any]]:
    """Yield (place, name, value) of every argument, and of every tool, which has no value."""
    for index, message in enumerate(conversation.messages):
        for call in message.get("tool_calls", []):
            for name, value in call["function"]["arguments"].items():
                yield f"messages[{index}]", name, value
    for tool in conversation.tools or []:
        yield "tools", tool["function"]["name"], None


def readable_json(value: Any) -> str:
    """Return a value as JSON with all characters as they are; empty text for an empty value."""
    return json.dumps(value, ensure_ascii=False) if value else ""
