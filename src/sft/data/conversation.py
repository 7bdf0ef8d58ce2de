"""Conversations: one form for every source, and the checks of their structure.

A record (OpenAI chat, see `normalise`) becomes a `Conversation` or a `Rejection` with a stable reason and
its evidence. `check_structure` applies every structural check, in order, and gives the first rejection.

Normal form: roles system, user, assistant, tool; content always a string; `reasoning_content` only when
there is some; `tool_calls` [{"id"?, "type", "function": {"name", "arguments": object}}]; tools
[{"type": "function", "function": {"name", "description"?, "parameters"?}}] or none.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema
import referencing

from sft.files import value_digest

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
# Text that a chat template writes as structure. In content it would be read as structure by a model whose
# vocabulary spells it in plain tokens.
MARKUP = re.compile(r"<\|im_(?:start|end)\|>|</?tool_(?:call|response)>")
# Unreadable bytes: the replacement character, and control characters other than tab, newline, return.
GARBAGE = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
EVIDENCE_CHARS = 200


@dataclass(frozen=True)
class Rejection:
    """Why a row is refused."""

    reason: str
    """Stable, kebab case: it names the row's count in the ledger."""
    evidence: str
    """What was found, and where in the row."""


@dataclass(frozen=True)
class Conversation:
    """Messages and the tools that they may call, in normal form."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None

    @property
    def id(self) -> str:
        """A hash of the content: 32 hex digits, the same wherever the conversation is found."""
        return value_digest({"messages": self.messages, "tools": self.tools})[:32]

    def texts(self) -> list[str]:
        """All text that people or models wrote: contents, reasoning, arguments as JSON."""
        found = []
        for message in self.messages:
            found += [message["content"], message.get("reasoning_content", "")]
            found += [
                json.dumps(call["function"]["arguments"], ensure_ascii=False) for call in message.get("tool_calls", [])
            ]
        return found


def normalise(record: dict[str, Any]) -> Conversation | Rejection:
    """Bring a record of OpenAI chat form into normal form, or say why it cannot be.

    Accepts: content as string, list of text parts, or null; the developer role; arguments as JSON text or
    object; tools and calls with or without the `function` wrapper; the older `functions` and
    `function_call`; reasoning as `reasoning_content`, `reasoning`, or inline `<think>...</think>`.
    Normalising twice changes nothing.
    """
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        return Rejection("malformed-row", f"messages: expected a list that is not empty, found {_short(messages)}")
    normal = []
    for index, message in enumerate(messages):
        result = _normalise_message(message)
        if isinstance(result, Rejection):
            return Rejection(result.reason, f"messages[{index}]: {result.evidence}")
        normal.append(result)
    tools = _normalise_tools(record.get("tools") or record.get("functions"))
    return tools if isinstance(tools, Rejection) else Conversation(normal, tools or None)


def _normalise_message(message: Any) -> Message | Rejection:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return Rejection("malformed-row", f"expected an object with a role, found {_short(message)}")
    if message["role"] not in ROLES:
        return Rejection("unknown-role", f"found {_short(message['role'])}, expected one of {', '.join(ROLES)}")
    role = ROLES[message["role"]]
    content = _text(message.get("content"))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    if isinstance(content, Rejection):
        return content
    if not isinstance(reasoning, str):
        return Rejection("malformed-row", f"reasoning_content: expected text, found {_short(reasoning)}")
    normal: Message = {"role": role, "content": content}
    if role == "assistant":
        inline = INLINE_REASONING.fullmatch(content)
        if inline and not reasoning.strip():
            reasoning, normal["content"] = inline[1], inline[2].lstrip()
        if reasoning.strip():
            normal["reasoning_content"] = reasoning.strip()
        calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
        if not isinstance(calls, list):
            return Rejection("malformed-row", f"tool_calls: expected a list, found {_short(calls)}")
        normal_calls = [_normalise_call(call) for call in calls]
        for call in normal_calls:
            if isinstance(call, Rejection):
                return call
        if normal_calls:
            normal["tool_calls"] = normal_calls
    if role == "tool" and isinstance(message.get("tool_call_id"), str):
        normal["tool_call_id"] = message["tool_call_id"]
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
                return Rejection("non-text-content", f"content part {_short(part)}")
        return "".join(texts)
    return Rejection("malformed-row", f"content: expected text, text parts or null, found {_short(content)}")


def _normalise_call(call: Any) -> dict[str, Any] | Rejection:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return Rejection("malformed-row", f"tool call: expected a function with a name, found {_short(call)}")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            return Rejection("arguments-not-json", f"{function['name']}: {error}: {_short(arguments)}")
    if not isinstance(arguments, dict):
        return Rejection("arguments-not-object", f"{function['name']}: found {_short(arguments)}")
    normal: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    if isinstance(call.get("id"), str):
        normal["id"] = call["id"]
    return normal


def _normalise_tools(tools: Any) -> list[dict[str, Any]] | Rejection | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            return Rejection("malformed-row", f"tools: {error}")
    if not tools:
        return None
    if not isinstance(tools, list):
        return Rejection("malformed-row", f"tools: expected a list, found {_short(tools)}")
    normal = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return Rejection("malformed-row", f"tools[{index}]: expected a function with a name, found {_short(tool)}")
        normal.append({"type": "function", "function": {k: v for k, v in function.items() if k != "type"}})
    return normal


# --- Structural checks: each looks at one thing and returns the first fault ---------------------------


def check_encoding(conversation: Conversation) -> Rejection | None:
    """Text that was decoded wrongly, or holds control characters."""
    for text in [*conversation.texts(), json.dumps(conversation.tools or [], ensure_ascii=False)]:
        if found := GARBAGE.search(text):
            return Rejection("encoding-garbage", f"U+{ord(found[0]):04X} in {_around(text, found)}")
    return None


def check_roles(conversation: Conversation) -> Rejection | None:
    """System first or nowhere, then a user; assistants answer users or tools; tools answer calls."""
    before = {
        "system": {""},
        "user": {"", "system", "user", "assistant"},
        "assistant": {"user", "tool"},
        "tool": {"assistant", "tool"},
    }
    previous = ""
    for index, message in enumerate(conversation.messages):
        if previous not in before[message["role"]]:
            return Rejection("role-order", f"messages[{index}]: {message['role']} after {previous or 'the start'}")
        previous = message["role"]
    if previous != "assistant":
        return Rejection("last-turn-not-assistant", f"the last message is from {previous}")
    return None


def check_answers(conversation: Conversation) -> Rejection | None:
    """Every assistant turn says something or calls something."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant" and not message["content"].strip() and "tool_calls" not in message:
            return Rejection("empty-answer", f"messages[{index}]: neither content nor tool calls")
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
    return None


def check_think_tags(conversation: Conversation) -> Rejection | None:
    """Think tags that normalising left in place are unbalanced, nested, or not at the start of an answer."""
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            for text in (message["content"], message.get("reasoning_content", "")):
                if found := THINK_TAGS.search(text):
                    return Rejection("think-tags", f"messages[{index}]: {_around(text, found)}")
    return None


def check_markup(conversation: Conversation) -> Rejection | None:
    """Template markup typed as text."""
    for text in conversation.texts():
        if found := MARKUP.search(text):
            return Rejection("template-markup", _around(text, found))
    return None


CHECKS: tuple[Callable[[Conversation], Rejection | None], ...] = (
    check_encoding,
    check_roles,
    check_answers,
    check_calls,
    check_results,
    check_think_tags,
    check_markup,
)


def check_structure(conversation: Conversation, max_chars: int) -> Rejection | None:
    """Return the first structural fault of a conversation, or None."""
    for check in CHECKS:
        if rejection := check(conversation):
            return rejection
    length = sum(len(text) for text in conversation.texts())
    if length > max_chars:
        return Rejection("too-long", f"{length} characters; filter.max_chars is {max_chars}")
    return None


def schema_fault(schema: Any, arguments: dict[str, Any]) -> str:
    """Say what is wrong with a call's arguments under a tool's JSON schema; empty if nothing.

    A fault of the schema itself starts with `schema: `. Arguments that the schema does not name are a
    fault: no function takes them.
    """
    if schema is None:
        return ""
    try:
        validator = _validator(json.dumps(schema, sort_keys=True))
        error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
    except (jsonschema.exceptions.SchemaError, referencing.exceptions.Unresolvable) as fault:
        return f"schema: {str(fault).splitlines()[0][:EVIDENCE_CHARS]}"
    except RecursionError:
        return "schema: it refers to itself without end"
    if error is not None:
        place = ".".join(str(part) for part in error.absolute_path)
        return f"{place + ': ' if place else ''}{error.message}"[:EVIDENCE_CHARS]
    known = schema.get("properties") if isinstance(schema, dict) else None
    if isinstance(known, dict) and not schema.get("additionalProperties") and "patternProperties" not in schema:
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            return f"unknown arguments {', '.join(unknown)}; known: {', '.join(sorted(known)) or 'none'}"
    return ""


@functools.lru_cache(maxsize=4096)
def _validator(schema: str) -> Any:
    value = json.loads(schema)
    kind = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
    kind.check_schema(value)
    return kind(value, registry=referencing.Registry())  # an empty registry: no schema is fetched from outside


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= EVIDENCE_CHARS else shown[: EVIDENCE_CHARS - 3] + "..."


def _around(text: str, found: re.Match[str]) -> str:
    """Show a match with what surrounds it, as evidence."""
    half = EVIDENCE_CHARS // 2
    return repr(text[max(0, found.start() - half) : found.end() + half])
