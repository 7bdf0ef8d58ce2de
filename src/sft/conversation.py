"""Conversations: records in OpenAI form -> one normal form for all sources.

`normalize` returns a `Conversation`, or a `Rejection` with a stable reason and its evidence. sft.filters.structure
checks what the form alone does not guarantee.

Normal form: roles system, user, assistant and tool; content is a string; `reasoning_content` only if not empty;
`tool_calls` [{"id"?, "type", "function": {"name", "arguments": object}}]; `loss: false` only on an assistant turn that
is not trained; tools [{"type": "function", "function": {"name", "description"?, "parameters"?}}] or None.
"""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from sft import strict_json
from sft.hashing import canonical_json

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = {"text", "input_text", "output_text"}
INLINE_REASONING = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
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
    tools: list[dict[str, Any]] | None

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


def normalize(record: dict[str, Any]) -> Conversation | Rejection:
    """Return a record of OpenAI form in normal form, or why that is not possible.

    Accepts content as a string, a list of text parts, or null; the developer role; arguments as JSON text or object;
    tools and calls with or without the `function` wrapper; the older `functions` and `function_call`; a refusal as the
    answer; reasoning as `reasoning_content`, `reasoning`, or inline `<think>...</think>`; `loss` or `weight` on a
    message. Normalizing twice changes nothing.
    """
    messages = record.get("messages")
    if not isinstance(messages, list):
        return Rejection("malformed-row", f"messages: expected a list, found {_excerpt(messages)}")
    if not messages:
        return Rejection("no-messages", "messages: an empty list")
    normal = []
    for index, message in enumerate(messages):
        result = _normalize_message(message)
        if isinstance(result, Rejection):
            return Rejection(result.reason, f"messages[{index}]: {result.evidence}")
        normal.append(result)
    tools = _normalize_tools(record.get("tools") or record.get("functions"))
    return tools if isinstance(tools, Rejection) else Conversation(normal, tools or None)


def _normalize_message(message: Any) -> Message | Rejection:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return Rejection("malformed-row", f"expected an object with a role, found {_excerpt(message)}")
    if message["role"] not in ROLES:
        return Rejection("unknown-role", f"found {_excerpt(message['role'])}, expected one of {', '.join(ROLES)}")
    role = ROLES[message["role"]]
    content = _text(message.get("content"))
    if isinstance(content, Rejection):
        return content
    trained = _is_trained(message)
    if isinstance(trained, Rejection):
        return trained
    normal: Message = {"role": role, "content": content}
    if role == "assistant":
        if not content and isinstance(message.get("refusal"), str):
            normal["content"] = message["refusal"]
        fault = _add_reasoning(normal, message) or _add_calls(normal, message)
        if fault:
            return fault
        if not trained:
            normal["loss"] = False
    if role == "tool" and message.get("tool_call_id") is not None:
        if not _is_id(message["tool_call_id"]):
            return Rejection("malformed-row", f"tool_call_id: expected text, found {_excerpt(message['tool_call_id'])}")
        normal["tool_call_id"] = str(message["tool_call_id"])
    return normal


def _text(content: Any) -> str | Rejection:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
            elif isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                return Rejection("non-text-content", f"content part {_excerpt(part)}")
        return "".join(texts)
    return Rejection("malformed-row", f"content: expected text, text parts or null, found {_excerpt(content)}")


def _is_trained(message: Message) -> bool | Rejection:
    """Read `loss` (true or false) and `weight` (1 or 0, as in OpenAI's fine-tuning); they must agree."""
    loss, weight = message.get("loss"), message.get("weight")
    if loss is not None and not isinstance(loss, bool):
        return Rejection("malformed-row", f"loss: expected true or false, found {_excerpt(loss)}")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        return Rejection("malformed-row", f"weight: expected 0 or 1, found {_excerpt(weight)}")
    if loss is not None and weight is not None and loss != bool(weight):
        return Rejection("malformed-row", f"loss is {_excerpt(loss)}, but weight is {_excerpt(weight)}")
    return loss if loss is not None else weight != 0


def _add_reasoning(normal: Message, message: Message) -> Rejection | None:
    """Add reasoning and remove inline reasoning from the content. Unpaired tags stay, for sft.filters.structure."""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(reasoning, str):
        return Rejection("malformed-row", f"reasoning_content: expected text, found {_excerpt(reasoning)}")
    reasoning = reasoning.strip()
    inline = INLINE_REASONING.fullmatch(normal["content"])
    if inline and not THINK_TAGS.search(inline[1] + inline[2]):
        thought = inline[1].strip()
        if not reasoning or thought in ("", reasoning):
            reasoning, normal["content"] = reasoning or thought, inline[2].lstrip()
    if reasoning:
        normal["reasoning_content"] = reasoning
    return None


def _add_calls(normal: Message, message: Message) -> Rejection | None:
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if not isinstance(calls, list):
        return Rejection("malformed-row", f"tool_calls: expected a list, found {_excerpt(calls)}")
    normal_calls = []
    for call in calls:
        normal_call = _normalize_call(call)
        if isinstance(normal_call, Rejection):
            return normal_call
        normal_calls.append(normal_call)
    if normal_calls:
        normal["tool_calls"] = normal_calls
    return None


def _normalize_call(call: Any) -> dict[str, Any] | Rejection:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return Rejection("malformed-row", f"tool call: expected a function with a name, found {_excerpt(call)}")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = strict_json.parse(arguments)
        except ValueError as error:
            return Rejection("arguments-not-json", f"{function['name']}: {error}: {_excerpt(arguments)}")
    if isinstance(arguments, list) and len(arguments) == 1:  # some models wrap the object in a list
        arguments = arguments[0]
    if not isinstance(arguments, dict):
        return Rejection("arguments-not-object", f"{function['name']}: found {_excerpt(arguments)}")
    normal: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if call.get("id") is not None:
        if not _is_id(call["id"]):
            return Rejection("malformed-row", f"{function['name']}: id: expected text, found {_excerpt(call['id'])}")
        normal["id"] = str(call["id"])
    return normal


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _normalize_tools(tools: Any) -> list[dict[str, Any]] | Rejection | None:
    if isinstance(tools, str):
        try:
            tools = strict_json.parse(tools)
        except ValueError as error:
            return Rejection("malformed-row", f"tools: {error}")
    if not tools:
        return None
    if not isinstance(tools, list):
        return Rejection("malformed-row", f"tools: expected a list, found {_excerpt(tools)}")
    normal = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            return Rejection(
                "malformed-row", f"tools[{index}]: expected a function with a name, found {_excerpt(tool)}"
            )
        normal.append({"type": "function", "function": {k: v for k, v in function.items() if k != "type"}})
    return normal


def _excerpt(value: Any) -> str:
    """Return a value as text for evidence, at most EVIDENCE_CHARS long."""
    text = repr(value)
    return text if len(text) <= EVIDENCE_CHARS else text[: EVIDENCE_CHARS - 3] + "..."
