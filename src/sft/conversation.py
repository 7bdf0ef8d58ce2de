"""Conversations in the one normal form of all sources, and rejections, which say why a row is none.

sft.formats.messages makes the normal form of what data sets publish; sft.filters.structure checks what the form alone
does not guarantee.

Normal form: roles system, user, assistant and tool; content is a string; `reasoning_content` only if not empty;
`tool_calls` [{"id"?, "type", "function": {"name", "arguments": object}}]; `loss: false` only on an assistant turn that
is not trained; tools [{"type": "function", "function": {"name", "description"?, "parameters"?}}] or None.
"""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from sft.hashing import canonical_json

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None
TemplateKwargs = Mapping[str, str | int | float | bool]
NO_KWARGS: TemplateKwargs = {}

# The keys that a message of each role may have.
KEYS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "reasoning_content", "tool_calls", "loss"},
    "tool": {"role", "content", "tool_call_id"},
}
THINK_TAGS = re.compile(r"</?think>")
EVIDENCE_CHARS = 200


@dataclass(frozen=True)
class Rejection:
    """Why a row is rejected."""

    reason: str
    """A stable name in kebab case; the ledger counts rows by it."""
    evidence: str
    """What was found, and where in the row."""


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that they can call, in normal form."""

    messages: list[Message]
    tools: Tools
    template_kwargs: TemplateKwargs = field(default_factory=dict)
    """What the row gives the chat template by name; no part of the content."""

    @functools.cached_property
    def canonical(self) -> bytes:
        """Messages and tools as JSON in UTF-8, keys sorted and control characters escaped, for hashes and search."""
        value = {"messages": self.messages, "tools": self.tools}
        calls = [message["tool_calls"] for message in self.messages if "tool_calls" in message]
        if not _has_floats([self.tools, calls]):
            # The same bytes several times faster, except for floats.
            with contextlib.suppress(TypeError):  # lone surrogates, and integers of more than 64 bits
                return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        return canonical_json(value)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the conversation of a row of data/filtered, whose `messages` and `tools` are JSON."""
        return cls(json.loads(row["messages"]), json.loads(row["tools"] or "null"))

    @property
    def id(self) -> str:
        """A hash of the content, 32 hex digits: equal conversations have equal ids, in any source."""
        return hashlib.sha256(self.canonical).hexdigest()[:32]

    def parts(self) -> Iterator[tuple[int, str]]:
        """Yield (index of the message, text): contents, reasoning, and names and arguments (sorted JSON) of calls."""
        for index, message in enumerate(self.messages):
            yield index, message["content"]
            if "reasoning_content" in message:
                yield index, message["reasoning_content"]
            for call in message.get("tool_calls", ()):
                yield index, call["function"]["name"]
                yield index, json.dumps(call["function"]["arguments"], sort_keys=True, ensure_ascii=False)


def _has_floats(value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float):
            return True
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return False


def trained_turns(messages: list[Message]) -> list[int]:
    """Return the indices of the turns that are trained: those of the assistant, unless they say `loss: false`."""
    return [index for index, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("loss", True)]


def is_normal(messages: Any, tools: Any) -> bool:
    """Return whether messages and tools are of normal form."""
    if not isinstance(messages, list) or not messages or not all(_is_normal_message(message) for message in messages):
        return False
    return tools is None or (isinstance(tools, list) and all(_is_function(tool, "parameters") for tool in tools))


def _is_normal_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        return False
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list) or not all(_is_function(call, "arguments") for call in calls):
        return False
    texts = (message[key] for key in ("reasoning_content", "tool_call_id") if key in message)
    return message.get("role") in KEYS and message.keys() <= KEYS[message["role"]] and all(map(_is_text, texts))


def _is_function(value: Any, key: str) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and _is_text(function.get("name")) and isinstance(function.get(key, {}), dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def excerpt(value: Any) -> str:
    """Return a value as text for evidence, at most EVIDENCE_CHARS long."""
    text = repr(value)
    return text if len(text) <= EVIDENCE_CHARS else text[: EVIDENCE_CHARS - 3] + "..."
