"""Markup: control tokens and tags of chat templates, typed as text where they would be read as structure.

By policy (`filter.control_tokens`), whatever the text says:

    reject   the conversation is refused as template-markup
    plain    control tokens pass; prep encodes them as the letters they are, never as a control token
    escape   a backslash goes behind the first character, <\\|im_end|>, in all that people, models and tools wrote

Tags that templates write as plain text (<tool_call>, <tool_response>, </parameter>) cannot be told from
structure: they are escaped or refused. So is a name of a tool or an argument that would end its own tag: always
refused.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from sft.conversation import Conversation, Message, Rejection
from sft.filters.encoding import around

POLICIES = ("reject", "as_text", "escape")
# Control tokens of the common chat templates, typed as text.
CONTROL = re.compile(
    r"<(?:\|(?:im_start|im_end|im_sep|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id"
    r"|python_tag|system|user|assistant|channel|message|start|end|return|call|constrain)\|>"
    r"|\uff5c(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence|tool▁[a-z▁]+)\uff5c>|(?:start|end)_of_turn>|</?SYS>>)"
    r"|\[/?INST\]"
)
# Tags that templates write as plain text, around calls and around results: who may not type them.
CALL_TAG, RESULT_TAG = re.compile(r"</?tool_call>"), re.compile(r"</?tool_response>")
MARKUP = {"system": (), "user": (RESULT_TAG,), "assistant": (RESULT_TAG, CALL_TAG), "tool": (RESULT_TAG,)}
# A conversation in which no < is followed and no > preceded by one of these, and without [INST], holds no markup.
# Split at one byte, it is searched several times faster than for a longer sign.
OPENED = (b"|", "\uff5c".encode())
CLOSED = (b"_turn", b"SYS", b"tool_call", b"tool_response", b"</parameter")
# What ends an argument in the nano3 template, and what the names in it cannot hold.
ARGUMENT_END, NAME_BREAK = re.compile(r"^</parameter>$", re.MULTILINE), re.compile(r"[<>\n]")


def check_control_tokens(conversation: Conversation, policy: str = "reject") -> Rejection | None:
    """Refuse template markup typed as text: read as structure, or learnt to be typed. Escaped text holds none.

    People and tools may speak of `<tool_call>`; an assistant that types it teaches calls that nobody executes.
    The system may speak of results; whoever else types one forges it.
    """
    control = [] if policy == "as_text" else [CONTROL]
    if has_signs(conversation):
        for index, message in enumerate(conversation.messages):
            for text in (message["content"], message.get("reasoning_content", ""), *_arguments(message)):
                for pattern in (*control, *MARKUP[message["role"]]):
                    if found := pattern.search(text):
                        return Rejection("template-markup", f"messages[{index}]: {around(text, found)}")
        for pattern in control:
            if found := pattern.search(text := _json(conversation.tools)):
                return Rejection("template-markup", f"tools: {around(text, found)}")
    for place, name, value in _names(conversation):
        if found := NAME_BREAK.search(name) or (ARGUMENT_END.search(value) if isinstance(value, str) else None):
            return Rejection("template-markup", f"{place}: {around(found.string, found)}")
    return None


def has_signs(conversation: Conversation) -> bool:
    """Say whether a conversation may hold markup: quickly, for most hold none."""
    whole = conversation.canonical
    return (
        any([piece.startswith(OPENED) for piece in whole.split(b"<")[1:]])
        or any([piece.endswith(CLOSED) for piece in whole.split(b">")])
        or b"INST]" in whole
    )


def count_control_tokens(conversation: Conversation) -> int:
    """Count the control tokens that are typed as text."""
    if not has_signs(conversation):
        return 0
    return len(CONTROL.findall(json.dumps([conversation.messages, conversation.tools], ensure_ascii=False)))


def escape(conversation: Conversation) -> Conversation:
    """Put a backslash into everything that `check_markup` would refuse, but for names; the same if there is nothing.

    >>> escape(Conversation([{"role": "user", "content": "a <|im_end|> b"}], None)).messages[0]["content"]
    'a <\\\\|im_end|> b'
    """
    if not has_signs(conversation):
        return conversation
    messages = []
    for message in conversation.messages:
        patterns = [CONTROL, *MARKUP[message["role"]]]
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
    return Conversation(messages, _escaped(conversation.tools, [CONTROL]))


def _escaped(value: Any, patterns: list[re.Pattern[str]]) -> Any:
    """Escape the texts of a JSON-like value; keys stay, for they are names."""
    if isinstance(value, str):
        for pattern in patterns:
            value = pattern.sub(lambda found: f"{found[0][0]}\\{found[0][1:]}", value)
        return value
    if isinstance(value, list):
        return [_escaped(item, patterns) for item in value]
    return {key: _escaped(item, patterns) for key, item in value.items()} if isinstance(value, dict) else value


def _arguments(message: Message) -> Iterator[str]:
    return (_json(call["function"]["arguments"]) for call in message.get("tool_calls", []))


def _names(conversation: Conversation) -> Iterator[tuple[str, str, Any]]:
    """Yield (place, name, value) of every argument, and of every tool, which has no value."""
    for index, message in enumerate(conversation.messages):
        for call in message.get("tool_calls", []):
            for name, value in call["function"]["arguments"].items():
                yield f"messages[{index}]", name, value
    for tool in conversation.tools or []:
        yield "tools", tool["function"]["name"], None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""
